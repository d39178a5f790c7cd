"""`ltat reproduce` from the command line: one table on digits, in real runs."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ltat.cli.main import main
from ltat.cli.options import Duration
from ltat.reproduce import registry
from ltat.reproduce.page import page
from tests.reproduce.tables import table


def reproduce(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "140"}).invoke(main, ["reproduce", *map(str, arguments)])


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PAPERS", (lambda: [table(*table().cells[1:])],))


def test_a_table_is_run_compared_written_and_skipped_by_the_next_call(
    digits: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    done = reproduce("table0", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    tree = json.loads((tmp_path / "paper/table0.json").read_text())
    text = (tmp_path / "paper/table0.md").read_text()
    assert text == page(tree) and text in done.output
    for row in tree["rows"]:
        (run,) = row["runs"]
        report = json.loads((tmp_path / "paper" / run["name"] / "report.json").read_text())["last"]
        own = row["figures"]["last"]["clean"]
        assert run["state"] == "finished" and own["ours"]["value"] == pytest.approx(report["clean"]["overall"])
        counts = own["verdicts"]["0"]
        assert counts["n"] == report["clean"]["n"]["overall"] and 100 * counts["correct"] / counts[
            "n"
        ] == pytest.approx(report["clean"]["overall"])
        assert own["difference"] == pytest.approx(own["ours"]["value"] - own["published"])
        assert len(run["config_sha256"]) == 64 and run["machine"] and run["threads"] == 1
    assert "2 of 2 runs are finished" in text and "data digits: " in text
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a finished run was started again"))
    assert reproduce("table0", "--out", tmp_path).exit_code == 0
    assert (tmp_path / "paper/table0.md").read_text() == text
    listed = reproduce("list", "--out", tmp_path)
    assert listed.exit_code == 0, listed.output
    assert re.search(r"^table0 +2 +2 +0\.0 +0\.0 +0\.0  digits$", listed.output, re.MULTILINE), listed.output


def test_the_list_names_a_target_whose_images_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    medical = registry.find_target("taet-dermamnist")
    monkeypatch.setattr(registry, "PAPERS", (lambda: [medical],))
    listed = CliRunner(env={"COLUMNS": "40"}).invoke(main, ["reproduce", "list", "--out", str(tmp_path)])
    assert listed.exit_code == 0, listed.output
    assert re.search(r"^taet-dermamnist +7 +0 +– +– +–  TAET: DermaMNIST$", listed.output, re.MULTILINE), listed.output


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("table99",), "there is no table or figure 'table99'"),
        (("table1",), "cifar10 lies in a folder"),
        (("table1", "--data-dir", "nowhere"), "nowhere"),
        (("table1", "--dataset", "digits"), "the row is trained on 13,996 training images"),
        (("table1", "--launcher", "slurm", "--budget", "25m"), "--budget 1500 s is for this machine"),
        (("table1", "--budget", "25 minutes"), "is not a length of time"),
    ],
)
def test_wrong_use_is_said_in_a_sentence_and_leaves_no_file(arguments: tuple[str, ...], fragment: str, tmp_path: Path):
    done = reproduce(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2 and fragment in done.output.replace("\n", " "), done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "seconds"), [("25m", 1500), ("90s", 90), ("1h30m", 5400), ("0.5h", 1800)])
def test_a_budget_has_units(text: str, seconds: float):
    assert Duration().convert(text, None, None) == seconds
