"""How `ltat train` ends when it is interrupted twice, or when nobody can read what it prints."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ltat.training import train
from ltat.training.run_folder import RunFolder
from tests.training.tiny import TINY, saved_state, tiny_config

TRAIN = [sys.executable, "-m", "ltat", "train", "--method", "at-bsl", *(f"--set={each}" for each in TINY)]


def test_two_interrupts_are_one_sentence_and_the_run_goes_on_from_there(tmp_path: Path):
    folder = tmp_path / "run"
    command = [*TRAIN, "--out", str(folder), "--set=train.epochs=10000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (folder / "state.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, said = process.communicate()
    assert process.returncode == 1 and "Traceback" not in said, said
    assert said.splitlines()[-1] == f"Error: interrupted; continue with `ltat train --out {folder} --resume`"
    assert saved_state(folder)["epoch"] >= 1


def test_an_interrupt_while_saving_loses_no_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    append = RunFolder.append_metrics

    def interrupted(folder: RunFolder, row: dict) -> None:
        append(folder, row)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunFolder, "append_metrics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config("method=at-bsl"), tmp_path)
    assert saved_state(tmp_path)["epoch"] == 1
    assert json.loads((tmp_path / "last.json").read_text())["extra"]["epoch"] == 1


def test_a_run_that_cannot_print_keeps_its_report(tmp_path: Path):
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:
        command = [*TRAIN, "--out", str(tmp_path), "--set=train.epochs=1"]
        done = subprocess.run(command, stdout=full, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == 1
    assert set(json.loads((tmp_path / "report.json").read_text())) == {"best", "last"}
