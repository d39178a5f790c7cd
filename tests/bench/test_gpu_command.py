"""`python -m bench.gpu`: its parts, limits, summary and exit code, with parts of a line each."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench import gpu
from bench.gpu import Part, run_parts


def program(name: str, code: str, limit: float = 20) -> Part:
    return Part(name, [sys.executable, "-c", code], limit)


def states(parts: list[Part], out: Path, seconds: float = 60) -> dict[str, str]:
    out.mkdir(exist_ok=True)
    return {outcome.name: outcome.state for outcome in run_parts(parts, out, seconds, os.environ)}


def test_a_part_that_fails_does_not_lose_the_next(tmp_path: Path):
    parts = [program("bad", "raise SystemExit(3)"), program("good", "print('done')")]
    assert states(parts, tmp_path / "out") == {"bad": "failed", "good": "passed"}
    assert (tmp_path / "out" / "logs" / "good.log").read_text() == "done\n"


def test_a_part_past_its_limit_is_ended_with_the_processes_it_started(tmp_path: Path):
    mark = tmp_path / "survived"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    assert states([program("hangs", code, limit=1)], tmp_path / "out") == {"hangs": "timed out"}
    time.sleep(3)
    assert not mark.exists()


@pytest.mark.parametrize("said", ["12 skipped in 0.1s", "SKIPPED [3] x.py: needs a CUDA device; 1 passed, 3 skipped"])
def test_a_test_run_that_skipped_the_device_is_no_pass(tmp_path: Path, said: str):
    command = [sys.executable, "-c", f"print({said!r})"]
    assert states([Part("tests", command, 20, gpu.PASSED, gpu.SKIPPED)], tmp_path / "out") == {"tests": "failed"}


def test_without_a_device_the_tests_part_fails_on_its_skips(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA device")
    part = gpu.tests("tests", 60, "tests/ops/test_graph_capture.py", "capture")
    assert states([part], tmp_path / "out") == {"tests": "failed"}


def test_a_part_for_which_no_time_is_left_is_not_begun_and_says_so(tmp_path: Path):
    parts = [program("first", "import time; time.sleep(2)"), program("second", "")]
    assert states(parts, tmp_path / "out", seconds=6) == {"first": "passed", "second": "not run"}
    assert "no time was left" in (tmp_path / "out" / "summary.md").read_text()


def test_a_program_that_is_not_there_is_a_failed_part_and_not_the_end(tmp_path: Path):
    parts = [Part("sanitizer", ["no-such-program"], 5), program("good", "")]
    assert states(parts, tmp_path / "out") == {"sanitizer": "failed", "good": "passed"}


def test_the_summary_of_what_was_done_is_there_when_a_later_part_is_cut_off(tmp_path: Path):
    out = tmp_path / "out"
    code = f"import pathlib; print(pathlib.Path({str(out / 'summary.json')!r}).read_text())"
    states([program("first", "print('12 things')"), program("second", code)], out)
    told = json.loads((out / "logs" / "second.log").read_text())
    assert [part["name"] for part in told["parts"]] == ["first"] and told["parts"][0]["last_line"] == "12 things"


def test_mfu_is_flops_of_the_images_over_the_measured_ceiling(tmp_path: Path):
    (tmp_path / "training").mkdir()
    rows = [{"stage": "student", "epoch": epoch, "images_per_s": speed} for epoch, speed in ((1, 10.0), (2, 10_000.0))]
    (tmp_path / "training" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (rate,) = gpu.throughput(tmp_path, ceiling=700.0)
    assert rate["images_per_s"] == 10_000
    # ten attack steps of 2 forwards' cost each, x + d and x - d trained at 3 each, the teacher's two forwards
    flops = 10_000 * (10 * 2 + 2 * 3 + 2) * 1.111e9
    assert rate["tflops"] == pytest.approx(flops / 1e12, abs=0.1)
    assert rate["mfu_percent"] == pytest.approx(100 * flops / 700e12, abs=0.1)
    assert rate["mfu_percent_of_788"] == pytest.approx(100 * flops / 788e12, abs=0.1)


@pytest.fixture
def two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [program("good", ""), program("bad", "raise SystemExit(1)")]
    monkeypatch.setattr(gpu, "all_parts", lambda out, data_dir: parts)


@pytest.mark.parametrize(("chosen", "code"), [(["--only", "good"], 0), ([], 1)])
def test_the_exit_code_says_whether_all_passed(two_parts: None, tmp_path: Path, chosen: list[str], code: int):
    done = CliRunner().invoke(gpu.main, [str(tmp_path / "new"), *chosen])
    assert done.exit_code == code, done.output
    assert json.loads((tmp_path / "new" / "summary.json").read_text())["parts"][0]["state"] == "passed"


def test_results_are_not_mixed_with_those_of_another_run(two_parts: None, tmp_path: Path):
    (tmp_path / "summary.md").touch()
    done = CliRunner().invoke(gpu.main, [str(tmp_path)])
    assert done.exit_code == 2 and "is not empty" in done.output


def test_every_part_starts_a_program_of_this_repository_that_exists():
    for part in gpu.all_parts(Path("/out"), None):
        modules = [part.command[k + 1] for k, word in enumerate(part.command) if word == "-m"]
        ours = [module for module in modules if module.startswith("bench.")]
        assert all((gpu.ROOT / f"{module.replace('.', '/')}.py").exists() for module in ours), part.name


def test_what_is_missing_is_named_before_anything_runs(
    two_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gpu, "_installed", lambda name: name != "pydantic")
    done = CliRunner().invoke(gpu.main, [str(tmp_path / "new"), "--only", "good"])
    assert done.output.startswith("missing here: pydantic; elsewhere: pip download -d wheels pydantic")
