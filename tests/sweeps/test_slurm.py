"""Jobs of a cluster: the script that Slurm gets, what depends on what, time-outs, and the whole way by submitit."""

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from ltat.cli.main import main
from ltat.errors import LtatError
from ltat.sweeps import Phase, RunPlan, run_sweep, share_teachers
from ltat.sweeps.slurm import RunJob, Slurm, SlurmJobs
from ltat.sweeps.state import Records
from ltat.training import train
from tests.sweeps.runs import assert_same_bits, epochs, one_thread, tiny_plan

SPEC = """
out = "{out}"
[settings]
data = {{ name = "digits", imbalance_ratio = 20 }}
model.name = "small"
select.set = "none"
teacher.train = "balanced"
[grid]
method = ["at-bsl", "natural"]
[[also]]
grid.method = ["ard"]
grid.kd.share = [0.5, 0.9]
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of Slurm that note what they are given; no job ever starts."""
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "sbatch").write_text(
        f"#!{sys.executable}\n"
        "import pathlib, shutil, sys\n"
        f"there = pathlib.Path({str(tmp_path)!r})\n"
        "number = 100 + len(list(there.glob('script-*')))\n"
        "shutil.copy(sys.argv[-1], there / f'script-{number}')\n"
        "print(f'Submitted batch job {number}')\n"
    )
    (commands / "sacct").write_text(f"#!/bin/sh\ncat {tmp_path}/states\n")
    (commands / "srun").write_text("#!/bin/sh\n")
    for path in commands.iterdir():
        path.chmod(0o755)
    (tmp_path / "states").write_text("JobID|State|NodeList\n")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setattr(SlurmJobs, "seconds", 0.0)
    return tmp_path


def directives(script: Path) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    return {key: shlex.split(value)[0] if value else "" for key, _, value in (line.partition("=") for line in lines)}


def say(cluster: Path, **states: str) -> None:
    lines = [f"{name.removeprefix('job').replace('x', '_')}|{state}|node" for name, state in states.items()]
    (cluster / "states").write_text("\n".join(["JobID|State|NodeList", *lines]) + "\n")


def interrupt_when(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Ctrl-C after some steps of the sweep."""
    left = iter(range(steps))

    def sleep(seconds: float) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("ltat.sweeps.running.time.sleep", sleep)


def test_the_scripts_have_the_resources_and_students_wait_for_their_teacher(cluster, monkeypatch):
    (cluster / "spec.toml").write_text(SPEC.format(out=cluster / "out"))
    monkeypatch.setattr(sys, "argv", ["ltat", "sweep", "spec.toml"])
    interrupt_when(monkeypatch, 1)
    options = ["--launcher", "slurm", "--jobs", "3", "--partition", "gpu", "--time", "90", "--cpus", "6"]
    arguments = ["sweep", str(cluster / "spec.toml"), *options, "--sbatch", "account=lab"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1, done.output
    assert "interrupted; the Slurm jobs go on, and `scancel 100 101 102` ends them; continue with" in done.output
    teacher, others, students = (directives(cluster / f"script-{number}") for number in (100, 101, 102))
    for script in (teacher, others, students):
        wanted = {"partition": "gpu", "time": "90", "gpus-per-node": "1", "cpus-per-task": "6", "account": "lab"}
        assert wanted.items() <= script.items()
        assert script["ntasks-per-node"] == "1" and script["signal"].startswith("USR2@") and "requeue" in script
    assert "array" not in teacher and others["array"] == students["array"] == "0-1%2"
    assert "dependency" not in teacher and "dependency" not in others
    assert students["dependency"] == "afterok:100" and students["kill-on-invalid-dep"] == "yes"
    assert "export OMP_NUM_THREADS=6" in (cluster / "script-102").read_text()
    assert {path.name: json.loads(path.read_text())["job"] for path in (cluster / "out/logs").glob("a*.job")} == {
        "at-bsl.job": "101_0",
        "ard-kd.share=0.5.job": "102_0",
        "ard-kd.share=0.9.job": "102_1",
    }


def test_a_sweep_begun_again_watches_its_jobs_and_submits_only_those_that_ended(cluster, monkeypatch):
    out = cluster / "out"
    plans = [tiny_plan(out, name, "method=at-bsl", f"seed.train={k}") for k, name in enumerate("ab")]
    interrupt_when(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plans, Slurm(), out)
    say(cluster, job100x0="RUNNING", job100x1="CANCELLED")
    interrupt_when(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt, match="scancel 100 101"):
        run_sweep(plans, Slurm(), out)
    assert len(list(cluster.glob("script-*"))) == 2 and "array" not in directives(cluster / "script-101")


def test_a_job_that_ends_without_a_word_is_a_failed_run(cluster, monkeypatch):
    out = cluster / "out"
    say(cluster, job100="OUT_OF_MEMORY")
    monkeypatch.setattr("ltat.sweeps.running.time.sleep", lambda seconds: None)
    states = run_sweep([tiny_plan(out, "a", "method=at-bsl")], Slurm(), out)
    assert states["a"].phase is Phase.FAILED
    assert states["a"].error.startswith("its Slurm job 100 ended as OUT_OF_MEMORY; see ")


def test_what_slurm_refuses_is_one_sentence(cluster):
    (cluster / "bin/sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: nosuch' >&2\nexit 1\n"
    )
    plan = tiny_plan(cluster / "out", "a", "method=at-bsl")
    with pytest.raises(LtatError, match=r"does not take the jobs .*invalid partition specified: nosuch"):
        run_sweep([plan], Slurm(partition="nosuch"), cluster / "out")


def test_without_a_cluster_or_without_submitit_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = tiny_plan(tmp_path / "out", "a", "method=at-bsl")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LtatError, match="there is no srun here"):
        run_sweep([plan], Slurm(), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(LtatError, match=r'pip install "ltat\[slurm\]"'):
        run_sweep([plan], Slurm(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--partition", "gpu"], "--partition is for jobs of a cluster"),
        (["--gpus", "0"], "--gpus is for jobs of a cluster"),
        (["--time", "5"], "--time is for jobs of a cluster"),
        (["--launcher", "slurm", "--sbatch", "account"], "'account' is not of the form KEY=VALUE"),
    ],
)
def test_options_that_do_not_suit_the_launcher_are_refused(arguments, fragment, tmp_path: Path):
    (tmp_path / "spec.toml").write_text(SPEC.format(out=tmp_path / "out"))
    done = CliRunner().invoke(main, ["sweep", str(tmp_path / "spec.toml"), *arguments])
    assert done.exit_code == 2 and fragment in done.output and not (tmp_path / "out").exists()


def test_a_job_whose_time_ends_before_anything_is_saved_is_not_requeued(tmp_path: Path):
    plan = tiny_plan(tmp_path, "a", "method=at-bsl")
    job = RunJob(plan, tmp_path)
    job.started = time.time()
    with pytest.raises(LtatError, match=r"--time, or set train\.checkpoint_minutes"):
        job.checkpoint()
    plan.folder.mkdir()
    (plan.folder / "state.pt").touch()
    os.utime(plan.folder / "state.pt", (job.started + 5,) * 2)
    assert job.checkpoint().function is job


def test_submitits_local_jobs_carry_out_a_sweep_and_go_on_after_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    long = tiny_plan(out, "long", "method=natural", "train.epochs=40", "select.set=none")
    plans = share_teachers([long, tiny_plan(out, "short", "method=at-bsl")], out)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(SlurmJobs, "seconds", 0.05)
    slurm, sent = Slurm(cluster="local", gpus=0, minutes=10), []  # up to 10 minutes, the signal is a time-out

    step = SlurmJobs.step

    def observed(jobs: SlurmJobs) -> list[RunPlan]:
        if not sent and epochs(long.folder) >= 3:
            sent.append(int((long.folder / ".lock").read_text().split()[1]))
            os.kill(sent[0], signal.SIGUSR2)  # as Slurm before the end of a job's time
        return step(jobs)

    monkeypatch.setattr(SlurmJobs, "step", observed)
    states = run_sweep(plans, slurm, out)
    assert {name: state.phase for name, state in states.items()} == dict.fromkeys(("long", "short"), Phase.FINISHED)
    assert sent and json.loads((long.folder / "env.json").read_text())["resumed"]
    assert "student 40/40" in Records(out).path(long, "log").read_text()
    for plan in plans:
        with one_thread():
            train(plan.asked(), tmp_path / plan.name)
        assert_same_bits(tmp_path / plan.name, plan.folder)
