"""`ltat sweep` as a command: what it prints, and how it ends."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from ltat.cli.main import main
from ltat.sweeps import Interrupted, Phase, RunState

SPEC = """
out = "{out}"
[settings]
data.name = "digits"
train.epochs = 2
train.device = "cpu"
kd.share = 0.5
[grid]
method = ["ard", "pgd-at"]
seed.train = [0, 1]
"""
REPORT = {"last": {"n": 400, "clean": {"overall": 60.0, "tail": 10.0}, "flags": []}}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "spec.toml").write_text(SPEC.format(out=tmp_path / "out"))
    return tmp_path / "spec.toml"


def sweep(*arguments: object):
    return CliRunner().invoke(main, ["sweep", *map(str, arguments)])


def ending(monkeypatch: pytest.MonkeyPatch, failed: str = "") -> None:
    """Instead of the runs: reports, and one run that fails and leaves the report of an earlier evaluation."""

    def run(plans, launcher, out):
        states = {}
        for plan in plans:
            plan.folder.mkdir(parents=True, exist_ok=True)
            (plan.folder / "report.json").write_text(json.dumps(REPORT))
            broken = plan.name == failed
            states[plan.name] = RunState(Phase.FAILED if broken else Phase.FINISHED, 2, 2, None, "it broke" * broken)
        return states

    monkeypatch.setattr("ltat.sweeps.run_sweep", run)


def test_a_sweep_that_ends_well_prints_its_table_and_writes_its_figures(spec, tmp_path, monkeypatch):
    ending(monkeypatch)
    done = sweep(spec, "--json", tmp_path / "figures.json")
    assert done.exit_code == 0 and "60.00 ± 0.00" in done.output, done.output
    assert "kd.share is left out for pgd-at, which lacks it" in done.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["pgd-at"]["runs"] == ["pgd-at-s0", "pgd-at-s1"]
    assert figures["pgd-at"]["figures"]["clean"]["tail"] == [10.0, 10.0]


def test_a_failed_run_has_no_figures_and_exit_code_1_names_it(spec, tmp_path, monkeypatch):
    ending(monkeypatch, failed="ard-s1")
    done = sweep(spec, "--json", tmp_path / "figures.json")
    assert done.exit_code == 1
    assert done.output.endswith("Error: 1 of 4 runs failed:\n  ard-s1: it broke\n")
    assert json.loads((tmp_path / "figures.json").read_text())["ard"]["runs"] == ["ard-s0"]


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (Interrupted("interrupted; the 2 runs under way were stopped"), "were stopped; continue with `ltat "),
        (KeyboardInterrupt(), "interrupted before the first run began; nothing was written"),
    ],
)
def test_an_interruption_says_how_to_go_on(stop, said, spec, monkeypatch):
    def run(plans, launcher, out):
        raise stop

    monkeypatch.setattr("ltat.sweeps.run_sweep", run)
    monkeypatch.setattr("sys.argv", ["ltat", "sweep", str(spec)])
    done = sweep(spec)
    assert done.exit_code == 1 and said in done.output and done.output.count("Error") == 1


def test_a_dry_run_lists_the_runs_and_writes_nothing(spec, tmp_path):
    done = sweep(spec, "--dry-run", "--out", tmp_path / "other")
    assert done.output.splitlines()[1:] == [f"{name}-s{k}: waiting" for name in ("ard", "pgd-at") for k in (0, 1)]
    assert not (tmp_path / "other").exists()


def test_figures_and_runs_of_one_name_are_refused(spec, tmp_path):
    done = sweep(spec, "--out", tmp_path / "a", "--json", tmp_path / "a")
    assert done.exit_code == 2 and "both write to" in done.output and not (tmp_path / "a").exists()
