"""`ltat eval`: what it takes from the card, and what it refuses before it costs time."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ltat.attacks import official
from ltat.cli.main import main
from ltat.evaluation.attacks import ATTACKS
from ltat.evaluation.flags import SELECTED_ON_TEST
from ltat.models import build_model, save_model

COUNTS = [500, 300, 200, 100, 90, 80, 60, 50, 30, 10]
FACTS = {"dataset": "digits", "imbalance_ratio": 20.0, "train_counts": COUNTS, "stage": "student"}


def save(folder: Path, **extra: Any) -> Path:
    """A model for the digits, of random weights, with these entries on its card."""
    save_model(build_model("small", num_classes=10, in_channels=1), folder / "best", extra=FACTS | extra)
    return folder / "best"


def run(checkpoint: Path, *arguments: object) -> Result:
    command = ["eval", str(checkpoint), "--attacks", "clean", "--n-examples", "10", "--device", "cpu"]
    return CliRunner().invoke(main, [*command, *map(str, arguments)])


def report(checkpoint: Path, file: Path, *arguments: object) -> dict[str, Any]:
    done = run(checkpoint, "--json", file, *arguments)
    assert done.exit_code == 0, done.output
    return json.loads(file.read_text())


def test_the_groups_are_those_of_the_ratio_that_was_asked_for(tmp_path: Path):
    model, file = save(tmp_path / "run"), tmp_path / "r.json"
    assert report(model, file)["clean"]["n"]["many"] == 3  # of the card's counts
    assert report(model, file, "--imbalance-ratio", 1)["clean"]["n"]["many"] == 10
    assert run(model, "--imbalance-ratio", 0).exit_code == 2


def test_the_name_is_the_run_and_the_checkpoint_however_it_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, file = save(tmp_path / "run"), tmp_path / "r.json"
    assert report(model, file)["model"] == "run/best"
    assert report(model.with_suffix(".safetensors"), file)["model"] == "run/best"
    monkeypatch.chdir(tmp_path / "run")
    assert report(Path("best"), file)["model"] == "run/best"


@pytest.mark.parametrize(("extra", "flagged"), [({"best": True}, True), ({"best": False}, False), ({}, False)])
def test_a_checkpoint_chosen_on_the_test_set_says_so(extra: dict[str, bool], flagged: bool, tmp_path: Path):
    found = report(save(tmp_path, select="test", **extra), tmp_path / "r.json")
    assert (SELECTED_ON_TEST in found["flags"]) is flagged
    assert report(save(tmp_path, select="val", **extra), tmp_path / "r.json")["flags"] == []


@pytest.mark.parametrize("option", ["--json", "--state-dir"])
@pytest.mark.parametrize("place", ["file/r", "/proc/below/r"])
def test_an_unwritable_place_is_reported_before_the_evaluation(
    option: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr("ltat.evaluation.evaluate", lambda *_, **__: pytest.fail("the evaluation ran"))
    done = run(save(tmp_path), option, tmp_path / place)
    assert done.exit_code == 2 and "cannot write" in done.output


def test_a_report_that_can_no_longer_be_written_does_not_cost_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ltat.cli.eval.check_outputs", lambda *_: None)
    (tmp_path / "file").touch()
    done = run(save(tmp_path), "--json", tmp_path / "file" / "r.json")
    assert done.exit_code == 2 and "overall" in done.output


def test_the_report_is_written_before_the_table_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise UnicodeEncodeError("latin-1", "–", 0, 1, "no such letter")

    monkeypatch.setattr("rich.console.Console.print", fail)
    run(save(tmp_path), "--json", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["n"] == 10


@pytest.mark.parametrize("file", ["best.json", "best.safetensors", "config.toml", "link"])
def test_no_report_replaces_what_the_evaluation_reads(file: str, tmp_path: Path):
    model = save(tmp_path)
    (tmp_path / "link").symlink_to("best.json")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    done = run(model, "--json", tmp_path / file)
    assert done.exit_code == 2 and "would replace" in done.output
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_report_and_a_folder_of_one_name_are_refused(tmp_path: Path):
    done = run(save(tmp_path), "--json", tmp_path / "out", "--state-dir", tmp_path / "out")
    assert done.exit_code == 2 and "both write to" in done.output


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({"threat_model": 3}, "threat_model"),
        ({"threat_model": {"norm": "l7"}}, "threat_model"),
        ({"threat_model": {"eps": "wide"}}, "threat_model"),
        ({"dataset": ["digits"]}, "dataset"),
        ({"train_counts": "many"}, "train_counts"),
        ({"train_counts": [-1] * 10}, "train_counts"),
        ({"train_counts": [1, 2]}, "train_counts"),
        ({"train_counts": [10**400] * 10}, "train_counts"),
        ({"subset_seed": 2**62}, "subset_seed"),
        ({"imbalance_ratio": "steep"}, "imbalance_ratio"),
    ],
)
def test_a_card_with_invalid_entries_is_reported(extra: dict[str, Any], name: str, tmp_path: Path):
    done = run(save(tmp_path, **extra))
    assert done.exit_code == 2 and name in done.output, done.output
    assert done.output.count("\n") == 1


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_generator_takes_is_refused(seed: int, tmp_path: Path):
    assert "--seed" in run(save(tmp_path), "--seed", seed).output


def test_an_attack_that_breaks_off_costs_no_report_and_shows_in_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def breaks(inputs: Any) -> None:
        raise RuntimeError("no such tile")

    monkeypatch.setitem(ATTACKS, "autoattack", breaks)
    done = run(save(tmp_path), "--attacks", "clean,autoattack", "--json", tmp_path / "r.json")
    assert done.exit_code == 1 and "no figure of autoattack" in done.output
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["clean"]["overall"] is not None and saved["failed"] == {"autoattack": "no such tile"}


def test_what_autoattack_will_leave_out_is_said_before_any_attack_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(official, "l2_tiles", lambda *size: False)
    monkeypatch.setitem(ATTACKS, "autoattack", lambda subject: (_ for _ in ()).throw(RuntimeError("attacked")))
    done = run(save(tmp_path), "--attacks", "autoattack", "--norm", "l2", "--eps", "0.5")
    assert "attacked" in str(done.exception)
    said = " ".join(done.output.split())
    assert "cannot tile images of 8x8 pixels; it runs apgd-ce, apgd-t, fab-t" in said
