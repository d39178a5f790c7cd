"""`python -m bench.gpu`: its parts, limits, summary and exit code, with parts of a line each."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench import gpu, short_training
from bench.gpu import Part, run_stages

OPERATORS = ("pgd_step", "balanced_kd", "gather_augment", "relu_grad_add", "affine_relu")


def program(name: str, code: str, limit: float = 20) -> Part:
    return Part(name, [sys.executable, "-c", code], limit)


def outcomes(stages: list[gpu.Stage], out: Path, seconds: float = 60) -> dict[str, gpu.Outcome]:
    out.mkdir(exist_ok=True)
    return {outcome.name: outcome for outcome in run_stages(stages, out, seconds, os.environ)}


def states(parts: list[Part], out: Path, seconds: float = 60) -> dict[str, str]:
    """The states of parts that run one after the other."""
    return {name: outcome.state for name, outcome in outcomes([(part,) for part in parts], out, seconds).items()}


def test_a_part_that_fails_does_not_lose_the_next(tmp_path: Path):
    parts = [program("bad", "raise SystemExit(3)"), program("good", "print('done')")]
    assert states(parts, tmp_path / "out") == {"bad": "failed", "good": "passed"}
    assert (tmp_path / "out" / "logs" / "good.log").read_text() == "done\n"


def test_side_by_side_one_past_its_limit_is_ended_with_what_it_started_and_the_others_go_on(tmp_path: Path):
    mark = tmp_path / "survived"
    child = f"import time, pathlib; time.sleep(2); pathlib.Path({str(mark)!r}).touch()"
    hangs = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    stage = (
        program("hangs", hangs, limit=1),
        program("bad", "print('of bad'); raise SystemExit(3)"),
        Part("absent", ["no-such-program"], 5),
        program("good", "import time; time.sleep(1.5); print('of good')"),
    )
    found = outcomes([stage, (program("next", ""),)], tmp_path / "out")
    wanted = {"hangs": "timed out", "bad": "failed", "absent": "failed", "good": "passed", "next": "passed"}
    assert {name: outcome.state for name, outcome in found.items()} == wanted
    logs = tmp_path / "out" / "logs"
    assert [(logs / f"{name}.log").read_text() for name in ("bad", "good")] == ["of bad\n", "of good\n"]
    time.sleep(1)
    assert not mark.exists()


def test_the_parts_of_a_stage_run_at_once_and_the_next_stage_alone(tmp_path: Path):
    # Each waits for the other's mark, so one after the other neither would end; the next must find both at an end.
    def meets(name: str, other: str) -> Part:
        here, there = tmp_path / name, tmp_path / other
        code = f"import pathlib, time; pathlib.Path({str(here)!r}).touch()\n"
        code += f"while not pathlib.Path({str(there)!r}).exists(): time.sleep(0.05)\n"
        return program(name, f"{code}time.sleep(0.3); pathlib.Path({str(here) + '-end'!r}).touch()", limit=10)

    ends = [str(tmp_path / f"{name}-end") for name in ("a", "b")]
    alone = program("alone", f"import pathlib; assert all(pathlib.Path(end).exists() for end in {ends!r})")
    found = outcomes([(meets("a", "b"), meets("b", "a")), (alone,)], tmp_path / "out")
    assert {name: outcome.state for name, outcome in found.items()} == dict.fromkeys(("a", "b", "alone"), "passed")


def test_what_is_running_ends_with_the_command_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    mark = tmp_path / "survived"
    monkeypatch.setattr(gpu, "write_summary", interrupted)
    late = program("late", f"import time, pathlib; time.sleep(1); pathlib.Path({str(mark)!r}).touch()")
    with pytest.raises(KeyboardInterrupt):
        outcomes([(late, program("soon", ""))], tmp_path / "out")
    time.sleep(1.5)
    assert not mark.exists()


@pytest.mark.parametrize("said", ["12 skipped in 0.1s", "SKIPPED [3] x.py: needs a CUDA device; 1 passed, 3 skipped"])
def test_a_test_run_that_skipped_the_device_is_no_pass(tmp_path: Path, said: str):
    command = [sys.executable, "-c", f"print({said!r})"]
    assert states([Part("tests", command, 20, gpu.PASSED, gpu.SKIPPED)], tmp_path / "out") == {"tests": "failed"}


def test_without_a_device_the_tests_part_fails_on_its_skips(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA device")
    part = gpu.tests("tests", 60, "tests/ops/test_graph_capture.py", "-k", "capture")
    assert states([part], tmp_path / "out") == {"tests": "failed"}


def test_a_part_for_which_no_time_is_left_is_not_begun_and_says_so(tmp_path: Path):
    parts = [program("first", "import time; time.sleep(0.5)"), program("second", "")]
    assert states(parts, tmp_path / "out", seconds=5.4) == {"first": "passed", "second": "not run"}
    assert "no time was left; --only second runs it" in (tmp_path / "out" / "summary.md").read_text()


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
    stages = [(program("good", ""), program("bad", "raise SystemExit(1)"))]
    monkeypatch.setattr(gpu, "all_stages", lambda out, data_dir: stages)


@pytest.mark.parametrize(("chosen", "code"), [(["--only", "good"], 0), ([], 1)])
def test_the_exit_code_says_whether_all_passed(two_parts: None, tmp_path: Path, chosen: list[str], code: int):
    done = CliRunner().invoke(gpu.main, [str(tmp_path / "new"), *chosen])
    assert done.exit_code == code, done.output
    told = json.loads((tmp_path / "new" / "summary.json").read_text())["parts"]
    assert {part["name"]: part["state"] for part in told} == {"good": "passed"} | ({"bad": "failed"} if code else {})


def test_results_are_not_mixed_with_those_of_another_run(two_parts: None, tmp_path: Path):
    (tmp_path / "summary.md").touch()
    done = CliRunner().invoke(gpu.main, [str(tmp_path)])
    assert done.exit_code == 2 and "is not empty" in done.output


def parts() -> dict[str, Part]:
    return {part.name: part for stage in gpu.all_stages(Path("/out"), None) for part in stage}


def test_every_part_starts_a_program_of_this_repository_that_exists():
    for part in parts().values():
        modules = [part.command[k + 1] for k, word in enumerate(part.command) if word == "-m"]
        ours = [module for module in modules if module.startswith("bench.")]
        assert all((gpu.ROOT / f"{module.replace('.', '/')}.py").exists() for module in ours), part.name


def test_whatever_is_timed_runs_alone():
    stages = gpu.all_stages(Path("/out"), None)
    assert sum(map(len, stages)) == len(parts())
    shared = {part.name for stage in stages if len(stage) > 1 for part in stage}
    assert shared == {"tests", "capture", "memcheck", "racecheck", "initcheck"}


@pytest.mark.parametrize("name", ["train_step_32", "train_step_128", "train_step_compiled", "pgd_step", "attack"])
def test_a_shortened_bench_takes_the_options_it_is_given(name: str):
    command = list(parts()[name].command)
    module = importlib.import_module(command[command.index("-m") + 1])
    module.main.make_context("bench", command[command.index("-m") + 2 :])


def test_initcheck_watches_the_kernels_that_write_what_ours_read():
    watched = {name: "--kernel-name" in parts()[name].command for name in ("memcheck", "racecheck", "initcheck")}
    assert watched == {"memcheck": True, "racecheck": True, "initcheck": False}


def collected(name: str, folder: str) -> list[str]:
    """The tests of ``folder`` that a part would run."""
    command = list(parts()[name].command)
    pytest_begins = command.index("pytest")
    words = [sys.executable, "-m", "pytest", folder, *command[pytest_begins + 2 :], "--collect-only"]
    listed = subprocess.run(words, cwd=gpu.ROOT, capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if "::" in line]


def test_under_a_sanitizer_every_kernel_is_tested_and_the_slow_randomised_tests_are_not():
    names = collected("memcheck", "tests/ops")
    assert {name.split("::")[0] for name in names} == {f"tests/ops/test_{op}.py" for op in OPERATORS}
    assert not [name for name in names for slow in gpu.SLOW_TESTS if slow in name]
    assert all("cuda" in name for name in names)


def test_the_captures_are_those_of_a_device_and_not_the_cpus_stand_ins():
    names = {name.split("::")[1].split("[")[0] for name in collected("capture", "tests/attacks")}
    assert "test_a_captured_attack_on_a_gpu_gives_the_eager_bits" in names
    assert "test_a_captured_attack_reads_nothing_back_and_draws_nothing" not in names  # of a recorder without a GPU


def test_what_is_missing_is_named_before_anything_runs(
    two_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gpu, "_installed", lambda name: name != "pydantic")
    done = CliRunner().invoke(gpu.main, [str(tmp_path / "new"), "--only", "good"])
    assert done.output.startswith("missing here: pydantic; ")
    version = ".".join(map(str, sys.version_info[:2]))  # of this machine, not of the one that fetches
    assert f"--python-version {version} pydantic\n" in done.output and "--no-deps" not in done.output


def test_the_minutes_given_with_a_part_are_its_limit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    slow = program("slow", "import time; time.sleep(1.5)", limit=0.5)
    monkeypatch.setattr(gpu, "all_stages", lambda out, data_dir: [(slow,)])
    for name, options, state in (("without", [], "timed out"), ("with", ["--minutes", "0.5"], "passed")):
        CliRunner().invoke(gpu.main, [str(tmp_path / name), "--only", "slow", *options])
        told = json.loads((tmp_path / name / "summary.json").read_text())["parts"]
        assert [part["state"] for part in told] == [state], name


def test_nothing_compiles_before_every_bench_has_written_its_other_rows():
    compiling = [
        any(word.startswith("LTAT_BENCH_MODES=") and word[17:] for word in p.command) for p in parts().values()
    ]
    benches = [
        "bench." in " ".join(part.command) and "short_training" not in " ".join(part.command)
        for part in parts().values()
    ]
    timed = [modes for modes, is_bench in zip(compiling, benches, strict=True) if is_bench]
    assert timed == sorted(timed) and any(timed)


def test_a_package_that_is_missing_costs_the_tests_that_need_it_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "test_needs_it.py").write_text("import no_such_package\n")
    (tmp_path / "test_does_not.py").write_text("def test_plain():\n    pass\n")
    part = gpu.tests("tests", 60, str(tmp_path), "--rootdir", str(tmp_path), "-c", os.devnull)
    assert outcomes([(part,)], tmp_path / "out")["tests"].last_line.startswith("1 passed, 1 error")


def test_the_training_replays_graphs_and_is_given_the_real_data(tmp_path: Path):
    stages = gpu.all_stages(Path("/out"), tmp_path)
    commands = {part.name: part.command for stage in stages for part in stage if part.name.startswith("training")}
    for command in commands.values():
        short_training.main.make_context("training", list(command[command.index("-m") + 2 :]))
        assert command[command.index("--data-dir") + 1] == str(tmp_path)
    assert "train.graph=true" in short_training.settings(tmp_path, "cuda", 1)
    assert "train.graph=false" in commands["training_eager"]
