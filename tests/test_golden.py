"""Whether the recorder sees one changed weight, one changed figure, and nothing where all is equal."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.golden.__main__ import main
from tests.golden.cases import all_cases
from tests.golden.compare import difference
from tests.golden.record import keep_figures

WEIGHTS = {"layer": np.arange(6, dtype=np.float32).reshape(2, 3)}
ROW = {"epoch": 1, "loss": 0.5, "seconds": 1.5, "val": {"clean": 50.0}}


def recording(folder, weights=WEIGHTS, row=ROW, report=40.0):
    """The recording of one case that left such files."""
    run = folder / "work/case/run"
    run.mkdir(parents=True)
    (folder / "cases").mkdir()
    save_file(weights, run / "last.safetensors", metadata={"written": folder.name})
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    (run / "report.json").write_text(json.dumps({"last": {"model": folder.name, "clean": report}}))
    keep_figures(folder, {"name": "case", "failed": None, "seconds": 1.0})
    (folder / "about.json").write_text(json.dumps({"torch": "2", "cpu": "AVX2"}))
    return str(folder)


def one_weight():
    values = WEIGHTS["layer"].copy()
    values[1, 2] = np.nextafter(values[1, 2], 9)
    return {"layer": values}


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"weights": one_weight()}, "weights run/last.safetensors: layer"),
        ({"row": {**ROW, "loss": 0.5000001}}, "metrics run/metrics.jsonl row 1: loss 0.5 | 0.5000001"),
        ({"row": {**ROW, "val": {"clean": 50.1}}}, "row 1: val.clean"),
        ({"report": 40.25}, "report run/report.json: last.clean 40.0 | 40.25"),
    ],
)
def test_one_bit_that_changes_is_reported_with_its_part(tmp_path, capsys, changed, part):
    before, after = recording(tmp_path / "a"), recording(tmp_path / "b", **changed)
    assert main(["compare", before, after]) == 1
    out = capsys.readouterr().out
    assert part in out and "0 of 1 cases bit-equal" in out
    assert main(["compare", before, after, "--expect", "ca*"]) == 0


def test_equal_runs_pass_whatever_the_clock_and_the_names_say(tmp_path, capsys):
    row = {"epoch": 1, "outer_loss": 0.5, "seconds": 9.0, "val": {"clean": 50.0}, "more": 3}
    before, after = recording(tmp_path / "a"), recording(tmp_path / "b", row=row)
    assert main(["compare", before, after]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 cases bit-equal" in out
    assert "metrics loss is now outer_loss (1 times)" in out and "metrics more is new" in out


def test_a_case_that_failed_or_is_missing_is_no_equal_one(tmp_path, capsys):
    before, after = recording(tmp_path / "a"), recording(tmp_path / "b")
    path = tmp_path / "b/cases/case.json"
    path.write_text(json.dumps({"name": "case", "failed": "exit code 2", "parts": {}}))
    assert main(["compare", before, after]) == 1
    path.unlink()
    assert main(["compare", before, after]) == 1
    assert "was not recorded" in capsys.readouterr().out


def test_a_value_under_another_section_is_the_same_setting():
    found = difference({"attack.step": 0.1, "lr.factor": 0.1}, {"schedule.factor": 0.1, "attack.step_size": 0.1})
    assert found.renamed == {"attack.step": "attack.step_size", "lr.factor": "schedule.factor"}


def test_the_cases_have_names_of_their_own_and_cover_every_method():
    from ltat.methods import METHODS

    names = [case.name for case in all_cases(["unified/digits"])]
    assert len(set(names)) == len(names)
    assert {f"{method}-{precision}" for method in METHODS for precision in ("fp32", "bf16")} <= set(names)
