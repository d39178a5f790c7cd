"""Temporary files and folders that not even a killed process leaves for good.

Their holder keeps a kernel lock on them, which ends with the holder however it ends. Whoever writes next into the same
folder removes those that no process holds. Where a file system knows no locks, none is removed.
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_PREFIX, _SUFFIX = ".ltat-", ".tmp"  # no other program's names, because files with such names are removed
_NAME = re.compile(r"\.ltat-[a-z0-9_]{8}\.tmp")


@contextlib.contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """An empty file in ``folder``, removed at the end if it still has its name."""
    with _held(lambda: tempfile.mkstemp(dir=folder, prefix=_PREFIX, suffix=_SUFFIX)) as path:
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """An empty folder in ``folder``, removed at the end with all it holds."""

    def make() -> tuple[int, str]:
        name = tempfile.mkdtemp(dir=folder, prefix=_PREFIX, suffix=_SUFFIX)
        return os.open(name, os.O_RDONLY), name

    with _held(make) as path:
        try:
            yield path
        finally:
            shutil.rmtree(path)


def sweep(folder: Path) -> None:
    """Remove the temporaries in ``folder`` that no living process holds; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _NAME.fullmatch(name):
                with contextlib.suppress(OSError):
                    _remove_unheld(folder / name)


@contextlib.contextmanager
def _held(make: Callable[[], tuple[int, str]]) -> Iterator[Path]:
    handle, name = make()
    while not _hold(handle, name):  # swept before it could be locked
        os.close(handle)
        handle, name = make()
    try:
        yield Path(name)
    finally:
        os.close(handle)


def _hold(handle: int, name: str) -> bool:
    """Lock the new file or folder; False where another process is removing it or has removed it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system, so no process can take it for free either
        return True
    return os.path.exists(name)


def _remove_unheld(path: Path) -> None:
    kind = os.lstat(path).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        return
    handle = os.open(path, os.O_RDONLY if stat.S_ISDIR(kind) else os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path) if stat.S_ISDIR(kind) else path.unlink()
    finally:
        os.close(handle)
