"""`ltat demo` deletes only what a demo wrote, and nothing before everything is checked; its gain is paired by seed."""

import json
import statistics
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ltat.cli import demo
from ltat.cli.main import main
from ltat.config import to_toml
from ltat.sweeps import Interrupted, RunPlan
from ltat.sweeps.paired import paired_gain
from ltat.training.run_lock import locked

N = {"overall": 400, "few": 160, "tail": 40}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["demo", *map(str, arguments)])


def report(method: str, seed: int) -> dict[str, object]:
    """Figures such that self-distill gains 4, 6 and 8 points on the rare classes with seeds 0, 1 and 2."""
    few = {"at-bsl": 40.0, "self-distill": 44.0 + 2 * seed}[method] - 10 * seed
    figures = {"overall": 67.0 + seed, "balanced": 67.0, "tail": 20.0, "many": 90.0, "medium": 80.0, "few": few, "n": N}
    return {"last": dict.fromkeys(("clean", "pgd20", "autoattack"), figures)}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where the demo trained; the training is left out."""
    folders = []

    def carry_out(plans: list[RunPlan], out: Path) -> dict[str, object]:
        for plan in plans:
            assert not (plan.folder / "config.toml").exists()
            config = plan.asked().config
            (plan.folder / "config.toml").write_text(to_toml(config))
            (plan.folder / "report.json").write_text(json.dumps(report(config.method, config.seed.train)))
            folders.append(plan.folder)
        return {}

    monkeypatch.setattr(demo, "carry_out", carry_out)
    return folders


def test_a_run_that_no_demo_wrote_is_never_deleted(tmp_path: Path, trained: list[Path]):
    assert run("--out", tmp_path).exit_code == 0
    mine = tmp_path / "self-distill-s1"
    (mine / demo.MARKER).unlink()
    refused = run("--out", tmp_path)
    assert refused.exit_code == 2 and str(mine) in refused.output and "--out" in refused.output
    assert (mine / "config.toml").exists() and (tmp_path / "at-bsl-s0" / "config.toml").exists()
    assert len(trained) == 6


def test_a_marked_folder_with_a_run_of_other_data_is_kept(tmp_path: Path, trained: list[Path]):
    folders = [tmp_path / "at-bsl-s0", tmp_path / "at-bsl-s7"]
    for folder in folders:
        folder.mkdir()
        (folder / demo.MARKER).touch()
        (folder / "config.toml").write_text('method = "at-bsl"\n[data]\nname = "cifar10"\n')
    assert run("--out", tmp_path).exit_code == 2 and not trained
    folders[0].rename(tmp_path / "elsewhere")
    assert run("--out", tmp_path).exit_code == 0
    assert "cifar10" in (folders[1] / "config.toml").read_text()


def test_a_demo_replaces_an_earlier_demo_of_more_seeds(tmp_path: Path, trained: list[Path]):
    assert run("--out", tmp_path, "--seeds", 2).exit_code == 0
    (tmp_path / "at-bsl-s0" / "old").touch()
    former = tmp_path / "at-bsl"  # as a former version called it
    (tmp_path / "at-bsl-s1").rename(former)
    assert run("--out", tmp_path, "--seeds", 1).exit_code == 0
    assert not (tmp_path / "at-bsl-s0" / "old").exists() and len(trained) == 6
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["at-bsl-s0", "self-distill-s0"]


@pytest.mark.parametrize("wrong", ["attack.esp=1", "model.name=vgg", "data.name=npz", "bsl.tau=-1", "kd.alpha=1"])
def test_wrong_settings_cost_no_folder(wrong: str, tmp_path: Path, trained: list[Path]):
    assert run("--out", tmp_path, "--seeds", 1).exit_code == 0
    refused = run("--out", tmp_path, "--seeds", 1, "--set", wrong)
    assert refused.exit_code == 2 and refused.output.startswith("Error: "), refused.output
    assert (tmp_path / "at-bsl-s0" / "config.toml").exists() and len(trained) == 2


def test_wrong_sizes_and_places_are_reported(tmp_path: Path, trained: list[Path]):
    assert "1<=x<=400" in run("--out", tmp_path, "--n-examples", 401).output
    (tmp_path / "file").touch()
    refused = run("--out", tmp_path / "file" / "below")
    assert refused.exit_code == 2 and "cannot write" in refused.output


@pytest.mark.parametrize("in_use", [".", "at-bsl-s0"])
def test_a_folder_in_use_is_not_emptied(in_use: str, tmp_path: Path, trained: list[Path]):
    assert run("--out", tmp_path, "--seeds", 1).exit_code == 0
    with locked(tmp_path / in_use, pytest.fail):
        refused = run("--out", tmp_path, "--seeds", 1)
    assert refused.exit_code == 2 and "in use by another run" in refused.output
    assert (tmp_path / "at-bsl-s0" / "config.toml").exists() and len(trained) == 2


def test_the_table_has_the_spread_and_the_paired_gain_of_the_rare_classes(tmp_path: Path, trained: list[Path]):
    done = run("--out", tmp_path)
    assert done.exit_code == 0, done.output
    # 4, 6, 8: mean 6, deviation 2; t of 2 degrees of freedom is 4.3027, so 6 ± 4.3027 * 2 / sqrt(3)
    for text in ("30.00 ± 10.00", "36.00 ± 8.00", "+6.0", "(+1.0 to +11.0)", "160 images", "40 images", "6, 7, 8, 9"):
        assert text in done.output, done.output
    table = done.output.partition("last checkpoint")[0]
    assert max(map(len, table.splitlines())) <= 80 and "…" not in table
    found = json.loads((tmp_path / demo.FILE).read_text())
    assert found["images"] == N and found["classes"] == {"few": [6, 7, 8, 9], "tail": [9]}
    few = found["figures"]["autoattack"]["few"]
    assert (few["AT-BSL"], few["self-distill"]) == ([40.0, 30.0, 20.0], [44.0, 36.0, 28.0])
    assert few["gain"] == pytest.approx({"mean": 6.0, "low": 1.0317, "high": 10.9683}, abs=1e-4)


def test_a_gain_is_that_of_the_pairs():
    values, baseline = [50.0, 60.0, 40.0, 55.0], [49.0, 57.0, 38.0, 53.0]
    gain = paired_gain(values, baseline)
    half = 3.18245 * statistics.stdev([1, 3, 2, 2]) / 2  # t of 3 degrees of freedom
    assert (gain.mean, gain.low, gain.high) == pytest.approx((2.0, 2 - half, 2 + half), abs=1e-4)
    assert paired_gain([3.0], [1.0]).low is None


def test_an_interrupted_demo_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(*_: object) -> None:
        raise Interrupted("stopped")

    monkeypatch.setattr("ltat.sweeps.run_sweep", stopped)
    done = run("--out", tmp_path, "--seeds", 1)
    assert done.exit_code == 1 and done.output == "Error: interrupted; the same command starts the demo again\n"


def test_a_small_demo_runs_in_processes_of_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(demo.DECIDED, "eval.attacks", "")  # AutoAttack takes too long for a test
    quick = ["train.epochs=1", "attack.steps=1"]
    settings = demo.checked_settings

    def without_autoattack(*arguments):
        asked = settings(*arguments)
        own = asked.config.eval.model_copy(update={"attacks": ("clean", "pgd2")})
        return type(asked)(asked.config.model_copy(update={"eval": own}))

    monkeypatch.setattr(demo, "checked_settings", without_autoattack)
    sets = [word for each in quick for word in ("--set", each)]
    done = run("--out", tmp_path, "--seeds", 1, "--n-examples", 20, *sets)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / demo.FILE).read_text())["images"] == {"overall": 20, "few": 8, "tail": 2}
    for method in ("at-bsl", "self-distill"):
        folder = tmp_path / f"{method}-s0"
        assert json.loads((folder / "env.json").read_text())["threads"] == 1
        assert list(json.loads((folder / "report.json").read_text())) == ["last"]  # the teacher is not evaluated
