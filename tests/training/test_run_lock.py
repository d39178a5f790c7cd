"""A run folder belongs to one run at a time, whatever becomes of it."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ltat.errors import LtatError
from ltat.training import train
from ltat.training.run_lock import NAME, locked, require_unlocked
from tests.training.tiny import tiny_config

HOLD = """
import os, sys, time
from pathlib import Path
from ltat.training.run_lock import locked
with locked(Path(sys.argv[1]), print):
    worker = os.fork()  # as a loader's, which outlives a parent that is killed
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""


def test_a_second_run_is_one_sentence_and_changes_nothing(tmp_path: Path):
    folder = tmp_path / "run"
    with locked(folder, pytest.fail):
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        for resume in (False, True):
            with pytest.raises(LtatError, match=f"in use by another run .process {os.getpid()} on .*another --out"):
                train(tiny_config("method=at-bsl", "train.epochs=1"), folder, resume=resume)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_run_locks_its_folder_from_its_settings_to_its_report(tmp_path: Path, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        with pytest.raises(LtatError, match="in use"):
            require_unlocked(tmp_path)
        raise KeyboardInterrupt

    for name in ("index_record", "environment_record", "fit", "write_report"):
        with monkeypatch.context() as patched:
            patched.setattr(f"ltat.training.run.{name}", refused)
            with pytest.raises(KeyboardInterrupt):
                train(tiny_config("method=at-bsl", "train.epochs=1"), tmp_path, resume=True)
    require_unlocked(tmp_path)


def test_a_killed_holder_leaves_no_lock_though_its_workers_live_on(tmp_path: Path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(LtatError, match=f"process {holder.pid} "):
            require_unlocked(tmp_path)
        holder.kill()
        holder.wait()
        with locked(tmp_path, pytest.fail):
            pass
    finally:
        holder.kill()
        os.kill(worker, signal.SIGKILL)


def test_closing_the_file_elsewhere_in_the_process_keeps_the_lock(tmp_path: Path):
    with locked(tmp_path, pytest.fail):
        (tmp_path / NAME).read_bytes()
        with pytest.raises(LtatError, match="in use"):
            require_unlocked(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_used(tmp_path: Path, monkeypatch, code: int):
    def unable(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", unable)
    said: list[str] = []
    with locked(tmp_path, said.append):
        pass
    assert len(said) == 1 and "cannot be locked" in said[0]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(LtatError, match="cannot write"), locked(tmp_path / "file", pytest.fail):
        pass
