"""A sweep that is interrupted, or killed, goes on by the same command to the same bits, and leaves no process."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from click.testing import CliRunner

from ltat.cli.main import main
from ltat.sweeps.spec import load_sweep
from ltat.training import train
from tests.sweeps.runs import assert_same_bits, epochs, one_thread

SPEC = """
out = "{out}"
[settings]
data = {{ name = "digits", imbalance_ratio = 20 }}
model.name = "small"
attack = {{ eps = 0.15, step_size = 0.05, steps = 1 }}
train = {{ epochs = 40, batch_size = 64, device = "cpu" }}
select.set = "none"
eval = {{ attacks = ["clean"], n_examples = 20 }}
[grid]
method = ["natural"]
seed.train = [1]
"""


def begin(spec: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ltat", "sweep", str(spec)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(there, process: "subprocess.Popen[str] | None" = None) -> None:
    end = time.monotonic() + 240
    while not there():
        assert time.monotonic() < end, "it did not happen"
        if process is not None:
            assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def is_unlocked(folder: Path) -> bool:
    with (folder / ".lock").open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_sweep_killed_and_interrupted_ends_with_the_bits_of_an_undisturbed_run(tmp_path: Path):
    spec, out = tmp_path / "spec.toml", tmp_path / "out"
    spec.write_text(SPEC.format(out=out))
    folder = out / "natural-s1"
    killed = begin(spec)
    wait_for(lambda: epochs(folder) >= 2, killed)
    killed.kill()
    killed.communicate()
    wait_for(lambda: is_unlocked(folder))  # its process has followed
    assert 2 <= epochs(folder) < 40 and not (folder / "report.json").exists()

    stopped = begin(spec)
    before = epochs(folder)
    wait_for(lambda: epochs(folder) >= before + 2, stopped)
    for _ in range(3):
        stopped.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, said = stopped.communicate(timeout=120)
    assert stopped.returncode == 1 and "Traceback" not in said
    again = f"continue with `ltat sweep {spec}`"
    assert said.splitlines()[-1] == f"Error: interrupted; the run under way was stopped; {again}"
    assert is_unlocked(folder) and not (folder / "report.json").exists()
    listed = CliRunner().invoke(main, ["sweep", str(spec), "--dry-run"]).output
    assert listed == f"natural-s1: stopped, epoch {epochs(folder)} of 40\n"

    with one_thread():
        ended = CliRunner().invoke(main, ["sweep", str(spec), "--json", str(tmp_path / "figures.json")])
        (plan,) = load_sweep(spec).plans
        train(plan.asked(), tmp_path / "whole")
    assert ended.exit_code == 0, ended.output
    assert json.loads((tmp_path / "figures.json").read_text())["natural"]["runs"] == ["natural-s1"]
    assert len(json.loads((folder / "env.json").read_text())["resumed"]) == 2
    assert_same_bits(tmp_path / "whole", folder)
    assert "finished, epoch 40 of 40" in CliRunner().invoke(main, ["sweep", str(spec), "--dry-run"]).output
