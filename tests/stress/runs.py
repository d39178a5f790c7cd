"""Runs to set against each other."""

import json
import subprocess
import sys
from pathlib import Path

from tests.training.tiny import TINY

EPOCHS = 20  # enough for two runs to meet
PROGRAM = """
import sys, time
from pathlib import Path
import ltat.cli.train, ltat.training
from ltat.cli import main
while not Path(sys.argv[1]).exists():
    time.sleep(0.001)
main(sys.argv[2:])
"""
TIMINGS = {"seconds", "images_per_s"}


def start(folder: Path, signal: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`ltat train` of a tiny run that loads its modules and waits for the file ``signal``; standard error is a pipe."""
    settings = [f"--set={each}" for each in (*TINY, f"train.epochs={EPOCHS}")]
    command = ["train", "--method", "at-bsl", *settings, "--out", str(folder), *arguments]
    program = [sys.executable, "-c", PROGRAM, str(signal), *command]
    return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def figures(folder: Path) -> list[dict]:
    """The lines of a run's metrics, but for what the clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


def same_run(one: Path, other: Path) -> None:
    """Require the same weights, figures and report, bit for bit."""
    for name in ("last.safetensors", "best.safetensors", "report.json", "config.toml"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), f"{name} differs"
    assert figures(one) == figures(other), "metrics.jsonl differs"
