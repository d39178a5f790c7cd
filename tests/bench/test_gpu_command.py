"""`python -m bench.gpu`: its parts, limits, summary, archive and exit code, with parts of a line each."""

import importlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench import BENCHES, _gpu_results, _parts, gpu, paper_run
from bench._running import Outcome, Part, Stage, run_stages

SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
OPERATORS = [path.name.removesuffix("_cuda.cu") for path in (gpu.ROOT / "csrc" / "kernels").glob("*_cuda.cu")]


def program(name: str, code: str, limit: float = 20, first: bool = False) -> Part:
    return Part(name, [sys.executable, "-c", code], limit, first=first)


def outcomes(stages: Sequence[Stage], out: Path, seconds: float = 60) -> dict[str, Outcome]:
    found: list[Outcome] = []
    run_stages(stages, out / "logs", seconds, os.environ, found.append)
    return {outcome.name: outcome for outcome in found}


@pytest.fixture(autouse=True)
def termination_put_back() -> Iterator[None]:
    """The command answers SIGTERM for the rest of its process, which here runs other tests."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


Call = Callable[..., tuple[int, dict[str, str]]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls the command with parts of our own; its exit code and the states that its summary tells."""

    def called(parts: list[Part], *options: str, out: str = "out") -> tuple[int, dict[str, str]]:
        monkeypatch.setattr(gpu, "all_stages", lambda out, data_dir: [(part,) for part in parts])
        done = CliRunner().invoke(gpu.main, [str(tmp_path / out), *options])
        assert done.exit_code in (0, 1), done.output
        told = json.loads((tmp_path / out / "summary.json").read_text())["parts"]
        return done.exit_code, {part["name"]: part["state"] for part in told}

    return called


def counting(name: str, marks: Path, ending: str = "", limit: float = 20) -> Part:
    """A part that leaves a line for each time that it runs."""
    return program(name, f"open({str(marks / name)!r}, 'a').write('ran\\n'); {ending}", limit)


def times_run(marks: Path, name: str) -> int:
    return len((marks / name).read_text().splitlines()) if (marks / name).exists() else 0


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


def test_what_is_running_ends_with_the_command_that_is_interrupted(tmp_path: Path):
    def interrupted(*given: object) -> None:
        raise KeyboardInterrupt

    mark = tmp_path / "survived"
    late = program("late", f"import time, pathlib; time.sleep(1); pathlib.Path({str(mark)!r}).touch()")
    with pytest.raises(KeyboardInterrupt):
        run_stages([(late, program("soon", ""))], tmp_path, 60, os.environ, interrupted)
    time.sleep(1.5)
    assert not mark.exists()


def test_what_is_running_ends_with_the_command_that_is_told_to_end(tmp_path: Path):
    # At the end of a stretch the machine ends the command; a training that lived on would hold its folder locked.
    begun, mark = tmp_path / "begun", tmp_path / "survived"
    code = f"import pathlib, time; pathlib.Path({str(begun)!r}).touch(); time.sleep(1.5)\n"
    code += f"pathlib.Path({str(mark)!r}).touch()"
    script = "import sys; from bench import gpu, _running\n"
    script += f"part = _running.Part('part', [sys.executable, '-c', {code!r}], 9)"
    script += "\ngpu.all_stages = lambda out, data: [(part,)]\ngpu.main()"
    command = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], cwd=gpu.ROOT)
    while not begun.exists():
        assert command.poll() is None
        time.sleep(0.05)
    command.send_signal(signal.SIGTERM)
    assert command.wait(10) == 128 + signal.SIGTERM
    time.sleep(1.6)
    assert not mark.exists()


@pytest.mark.parametrize("said", ["12 skipped in 0.1s", "SKIPPED [3] x.py: needs a CUDA device; 1 passed, 3 skipped"])
def test_a_test_run_that_skipped_the_device_is_no_pass(tmp_path: Path, said: str):
    command = [sys.executable, "-c", f"print({said!r})"]
    part = Part("tests", command, 20, _parts.PASSED, _parts.SKIPPED)
    assert states([part], tmp_path / "out") == {"tests": "failed"}


def test_without_a_device_the_tests_part_fails_on_its_skips(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a CUDA device")
    part = _parts.tests("tests", 60, "tests/ops/test_graph_capture.py", "-k", "capture")
    assert states([part], tmp_path / "out") == {"tests": "failed"}


def test_a_part_for_which_no_time_is_left_is_not_begun_and_says_so(tmp_path: Path):
    parts = [program("first", "import time; time.sleep(0.5)"), program("second", "")]
    found = outcomes([(part,) for part in parts], tmp_path, seconds=5.4)
    assert {name: outcome.state for name, outcome in found.items()} == {"first": "passed", "second": "not run"}
    assert found["second"].last_line == "no time was left; --only second runs it alone"


def test_a_program_that_is_not_there_is_a_failed_part_and_not_the_end(tmp_path: Path):
    parts = [Part("sanitizer", ["no-such-program"], 5), program("good", "")]
    assert states(parts, tmp_path / "out") == {"sanitizer": "failed", "good": "passed"}


def test_the_summary_and_the_archive_of_what_was_done_are_there_when_a_later_part_is_cut_off(
    call: Call, tmp_path: Path
):
    code = f"import pathlib, tarfile; print(pathlib.Path({str(tmp_path / 'out' / 'summary.json')!r}).read_text())\n"
    code += f"tarfile.open({str(tmp_path / 'out.tar.gz')!r}).extractall({str(tmp_path / 'brought')!r})"
    call([program("first", "print('12 things')"), program("second", code)])
    told = json.loads((tmp_path / "out" / "logs" / "second.log").read_text())
    assert [part["name"] for part in told["parts"]] == ["first"] and told["parts"][0]["last_line"] == "12 things"
    assert json.loads((tmp_path / "brought" / "out" / "summary.json").read_text()) == told


def test_the_archive_is_small_and_the_next_machine_goes_on_with_it(call: Call, tmp_path: Path):
    weights = tmp_path / "out" / "training" / "state.pt"
    code = f"import os, pathlib; path = pathlib.Path({str(weights)!r}); path.parent.mkdir()\n"
    code += "path.write_bytes(os.urandom(2**23)); (path.parent / 'metrics.jsonl').touch()"
    call([program("train", code)], "--archive", str(tmp_path / "small.tar.gz"))
    assert (tmp_path / "small.tar.gz").stat().st_size < 2**16
    with tarfile.open(tmp_path / "small.tar.gz") as archive:
        archive.extractall(tmp_path / "elsewhere", filter="data")
    assert (tmp_path / "elsewhere" / "out" / "training" / "metrics.jsonl").exists()
    never = program("train", "raise SystemExit('it has passed')")
    assert call([never], out="elsewhere/out") == (0, {"train": "passed"})


def test_mfu_is_flops_of_the_images_over_the_measured_ceiling(tmp_path: Path):
    (tmp_path / "training").mkdir()
    rows = [{"stage": "student", "epoch": epoch, "images_per_s": speed} for epoch, speed in ((1, 10.0), (2, 10_000.0))]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "training" / "metrics.jsonl").write_text(lines + '{"stage": "stu')  # cut off while it was written
    (rate,) = _gpu_results.throughput(tmp_path, ceiling=700.0)
    assert rate["images_per_s"] == 10_000
    # ten attack steps of 2 forwards' cost each, x + d and x - d trained at 3 each, the teacher's two forwards
    flops = 10_000 * (10 * 2 + 2 * 3 + 2) * 1.111e9
    assert rate["tflops"] == pytest.approx(flops / 1e12, abs=0.1)
    assert rate["mfu_percent"] == pytest.approx(100 * flops / 700e12, abs=0.1)
    assert rate["mfu_percent_of_788"] == pytest.approx(100 * flops / 788e12, abs=0.1)


BAD = program("bad", "raise SystemExit(1)")


@pytest.mark.parametrize(("chosen", "code"), [(["--only", "good"], 0), ([], 1)])
def test_the_exit_code_says_whether_all_passed(call: Call, chosen: list[str], code: int):
    told = {"good": "passed"} | ({"bad": "failed"} if code else {})
    assert call([program("good", ""), BAD], *chosen) == (code, told)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"parts": [{"name": "x"}]}'])
def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path, text: str | None):
    (tmp_path / ("summary.md" if text is None else "summary.json")).write_text(text or "")
    before = [(path.name, path.read_text()) for path in tmp_path.iterdir()]
    done = CliRunner().invoke(gpu.main, [str(tmp_path)])
    assert done.exit_code == 2 and "is not empty and holds no summary.json of this command" in done.output
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == before


def test_the_next_call_runs_what_was_not_run_or_timed_out_and_keeps_the_rest(call: Call, tmp_path: Path):
    slow = "import time; time.sleep(1.2)"
    done, late = counting("done", tmp_path), counting("late", tmp_path)
    failing, slowly = counting("bad", tmp_path, "raise SystemExit(1)"), counting("slow", tmp_path, slow, limit=0.8)
    told = {"done": "passed", "bad": "failed", "slow": "timed out", "late": "not run"}
    parts = [done, failing, slowly, late]
    assert call(parts, "--minutes", str(5.5 / 60)) == (1, told)
    assert call(parts) == (1, told | {"slow": "passed", "late": "passed"})  # twice the time for what timed out
    assert {name: times_run(tmp_path, name) for name in told} == {"done": 1, "bad": 1, "slow": 2, "late": 1}
    call(parts, "--only", "bad")
    assert times_run(tmp_path, "bad") == 2 and times_run(tmp_path, "done") == 1


def test_without_a_build_nothing_runs_and_the_next_call_builds_again(call: Call, tmp_path: Path):
    broken, tests = program("build", "raise SystemExit(1)", first=True), counting("tests", tmp_path)
    assert call([broken, tests]) == (1, {"build": "failed", "tests": "not run"})
    assert call([program("build", "", first=True), tests]) == (0, {"build": "passed", "tests": "passed"})
    built = counting("build", tmp_path)
    call([Part(built.name, built.command, built.limit, first=True), tests])  # on a machine that does not hold it
    assert times_run(tmp_path, "build") == 1 and times_run(tmp_path, "tests") == 1


def test_an_unknown_part_is_refused_with_the_names_of_all(tmp_path: Path):
    done = CliRunner().invoke(gpu.main, [str(tmp_path / "new"), "--only", "typo"])
    assert done.exit_code == 2 and "no part is called typo; choose from build, tests" in done.output
    assert not (tmp_path / "new").exists()


def parts() -> dict[str, Part]:
    return {part.name: part for stage in _parts.all_stages(Path("/out"), None) for part in stage}


def test_every_part_starts_a_program_of_this_repository_that_exists():
    for part in parts().values():
        modules = [part.command[k + 1] for k, word in enumerate(part.command) if word == "-m"]
        ours = [module for module in modules if module.startswith("bench.")]
        assert all((gpu.ROOT / f"{module.replace('.', '/')}.py").exists() for module in ours), part.name


def test_whatever_is_timed_runs_alone():
    stages = _parts.all_stages(Path("/out"), None)
    assert sum(map(len, stages)) == len(parts())
    shared = {part.name for stage in stages if len(stage) > 1 for part in stage}
    assert shared == {"tests", "capture", "memcheck", "racecheck", "synccheck", "initcheck"}


def test_what_is_worth_most_comes_first():
    names = list(parts())
    assert names[0] == "build" and names[1:3] == ["tests", "capture"] and names[7:9] == ["ceilings", "training"]
    assert [name for name, part in parts().items() if part.first] == ["build"]


def test_every_bench_of_a_device_is_measured():
    measured = {word.removeprefix("bench.") for part in parts().values() for word in part.command}
    assert BENCHES.keys() - set(_parts.OF_THE_HOST) <= measured


@pytest.mark.parametrize("name", ["train_step_32", "train_step_128", "train_step_compiled", "pgd_step", "attack"])
def test_a_shortened_bench_takes_the_options_it_is_given(name: str):
    command = list(parts()[name].command)
    module = importlib.import_module(command[command.index("-m") + 1])
    module.main.make_context("bench", command[command.index("-m") + 2 :])


def test_initcheck_watches_the_kernels_that_write_what_ours_read():
    watched = {name: "--kernel-name" in parts()[name].command for name in SANITIZERS}
    assert watched == {"memcheck": True, "racecheck": True, "synccheck": True, "initcheck": False}


@pytest.mark.parametrize("tool", SANITIZERS)
def test_every_tool_of_the_sanitizer_watches_the_tests_of_the_kernels(tool: str):
    command = list(parts()[tool].command)
    assert command[command.index("--tool") + 1] == tool and command[command.index("pytest") + 1] == "tests/ops"


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
    assert not [name for name in names for slow in _parts.SLOW_TESTS if slow in name]
    assert all("cuda" in name for name in names)


def test_the_captures_are_those_of_a_device_and_not_the_cpus_stand_ins():
    names = {name.split("::")[1].split("[")[0] for name in collected("capture", "tests/attacks")}
    assert "test_a_captured_attack_on_a_gpu_gives_the_eager_bits" in names
    assert "test_a_captured_attack_reads_nothing_back_and_draws_nothing" not in names  # of a recorder without a GPU


def test_what_is_missing_is_named_with_the_command_that_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu, "all_stages", lambda out, data_dir: [(program("good", ""),)])
    monkeypatch.setattr(gpu, "_installed", lambda name: name != "pydantic")
    done = CliRunner().invoke(gpu.main, [str(tmp_path / "new")])
    assert done.output.startswith("missing here: pydantic; ")
    version = ".".join(map(str, sys.version_info[:2]))  # of this machine, not of the one that fetches
    assert f"bench.carry carried --python {version} --package pydantic\n" in done.output


def test_the_minutes_given_with_a_part_are_its_limit_too(call: Call):
    slow = program("slow", "import time; time.sleep(1.5)", limit=0.5)
    for name, options, state in (("without", [], "timed out"), ("with", ["--minutes", "0.5"], "passed")):
        assert call([slow], "--only", "slow", *options, out=name)[1] == {"slow": state}


def test_nothing_compiles_before_every_bench_has_written_its_other_rows():
    compiling = [
        any(word.startswith("LTAT_BENCH_MODES=") and word[17:] for word in p.command) for p in parts().values()
    ]
    benches = [
        "bench." in " ".join(part.command) and "paper_run" not in " ".join(part.command) for part in parts().values()
    ]
    timed = [modes for modes, is_bench in zip(compiling, benches, strict=True) if is_bench]
    assert timed == sorted(timed) and any(timed)


def test_a_package_that_is_missing_costs_the_tests_that_need_it_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "test_needs_it.py").write_text("import no_such_package\n")
    (tmp_path / "test_does_not.py").write_text("def test_plain():\n    pass\n")
    part = _parts.tests("tests", 60, str(tmp_path), "--rootdir", str(tmp_path), "-c", os.devnull)
    assert outcomes([(part,)], tmp_path / "out")["tests"].last_line.startswith("1 passed, 1 error")


def test_the_training_replays_graphs_and_is_given_the_real_data(tmp_path: Path):
    stages = _parts.all_stages(Path("/out"), tmp_path)
    commands = {part.name: part.command for stage in stages for part in stage if part.name.startswith("training")}
    for command in commands.values():
        paper_run.main.make_context("training", list(command[command.index("-m") + 2 :]))
        assert command[command.index("--data-dir") + 1] == str(tmp_path)
    assert "--epochs" not in commands["training"]  # the whole of it
    assert "train.graph=true" in paper_run.settings(tmp_path, "cuda", None)
    assert "train.graph=false" in commands["training_eager"]


def test_what_was_carried_is_found_by_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    site = tmp_path / "carried" / _parts.SITE
    site.mkdir(parents=True)
    (site / "only_carried.py").touch()
    (site.parent / _parts.PACKED["train"]).touch()
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    given: list[Path | None] = []
    stages = [(program("part", "import only_carried"),)]
    monkeypatch.setattr(gpu, "all_stages", lambda out, data_dir: given.append(data_dir) or stages)
    done = CliRunner().invoke(gpu.main, [str(tmp_path / "out"), "--carried", str(site.parent)])
    assert done.exit_code == 0, done.output
    assert given == [site.parent]
