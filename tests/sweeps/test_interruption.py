"""A sweep that is interrupted, or killed, goes on by the same command to the same bits, and leaves no process."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ltat.sweeps.spec import load_sweep
from ltat.training import train
from tests.sweeps.runs import assert_same_bits, one_thread

SPEC = """
out = "{out}"
[settings]
data = {{ name = "digits", imbalance_ratio = 20 }}
model.name = "small"
attack = {{ eps = 0.15, step_size = 0.05, steps = 1 }}
train = {{ epochs = 25, batch_size = 64, device = "cpu" }}
select.set = "none"
eval = {{ attacks = ["clean"], n_examples = 20 }}
[grid]
method = ["natural"]
seed.train = [0, 1]
"""


def begin(spec: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ltat", "sweep", str(spec), "--jobs", "1", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(there, process: "subprocess.Popen[str] | None" = None) -> None:
    end = time.monotonic() + 240
    while not there():
        assert time.monotonic() < end, "it did not happen"
        if process is not None:
            assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def epochs(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def is_unlocked(folder: Path) -> bool:
    with (folder / ".lock").open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_sweep_killed_and_interrupted_ends_with_the_bits_of_undisturbed_runs(tmp_path: Path):
    spec, out = tmp_path / "spec.toml", tmp_path / "out"
    spec.write_text(SPEC.format(out=out))
    first, second = (out / f"natural-s{seed}" for seed in (0, 1))
    killed = begin(spec)
    wait_for(lambda: epochs(first) >= 2, killed)
    killed.kill()
    killed.communicate()
    wait_for(lambda: is_unlocked(first))  # its process has followed
    assert 2 <= epochs(first) < 25 and not (first / "report.json").exists()

    stopped = begin(spec)
    wait_for(lambda: epochs(second) >= 2, stopped)
    assert json.loads((first / "env.json").read_text())["resumed"]
    for _ in range(3):
        stopped.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 1 and "Traceback" not in said
    again = f"continue with `ltat sweep {spec} --jobs 1`"
    assert said.splitlines()[-1] == f"Error: interrupted; the run under way was stopped; {again}"
    assert is_unlocked(second) and not (second / "report.json").exists()

    listed, _ = begin(spec, "--dry-run").communicate(timeout=120)
    assert listed.splitlines()[0] == "natural-s0: finished, epoch 25 of 25"
    assert listed.splitlines()[1].startswith("natural-s1: stopped, epoch ")

    ended = begin(spec, "--json", str(tmp_path / "figures.json"))
    told, said = ended.communicate(timeout=240)
    assert ended.returncode == 0, said
    assert json.loads((tmp_path / "figures.json").read_text())["natural"]["runs"] == ["natural-s0", "natural-s1"]
    assert "natural-s0: running" not in said and "±" in told
    for plan in load_sweep(spec).plans:
        with one_thread():
            train(plan.asked(), tmp_path / plan.name)
        assert_same_bits(tmp_path / plan.name, plan.folder)
