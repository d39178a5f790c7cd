"""One run in a folder at a time: a lock that the kernel releases when its process ends, however it ends.

The lock is a ``flock`` on the file ``.lock`` of the folder, which is not deleted. A lock of ``fcntl`` would belong to
the process: it is lost when anything in the process closes the file, such as a copy of the folder, and it does not keep
out a second run of the same process. A ``flock`` belongs to the open file. On NFS, Linux turns it into a lock of the
whole file at the server, so that it holds between machines; an exclusive lock needs a file open for writing, so the
folder itself cannot be locked. A forked process would keep the file open after its parent ends, so it closes the file.
"""

import fcntl
import io
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from ltat.errors import LtatError

NAME = ".lock"


@contextmanager
def locked(folder: Path, say: Callable[[str], None], launch: str = "") -> Iterator[Callable[[str], None]]:
    """Lock the folder for this run; it is created if it is missing.

    On a file system without locks, ``say`` is called with a warning and nothing is locked. The function that it yields
    signs the folder with the name of a launch, whose restart may then continue the run (:func:`was_held_by`).

    Args:
        folder: of the run.
        say: called with a line for the user.
        launch: that has signed the folder before, so that it stays signed.

    Raises:
        LtatError: another run holds it, or it cannot be written.
    """
    with _opened(folder) as file:
        if _taken(folder, file, say):
            _sign(file, launch)
        yield partial(_sign, file)


def require_unlocked(folder: Path) -> None:
    """Check before long preparations that no other run holds the folder; this writes nothing.

    Raises:
        LtatError: another run holds it.
    """
    if (folder / NAME).exists():
        with _opened(folder) as file:
            _taken(folder, file, lambda line: None)


def _taken(folder: Path, file: io.FileIO, say: Callable[[str], None]) -> bool:
    """Lock the open file of the folder until it is closed; whether the file system has locks.

    Raises:
        LtatError: another run holds it.
    """
    os.register_at_fork(after_in_child=file.close)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LtatError(f"{folder} is in use by {_holder(file)}; wait for it to end, or name another --out") from None
    except OSError as error:
        say(f"warning: {folder} cannot be locked ({error.strerror}); make sure that no second run uses it")
        return False
    return True


def was_held_by(folder: Path, launch: str) -> bool:
    """Whether the last run that locked the folder was signed by that call of torchrun
    (:func:`ltat.torchrun.launch_name`).
    """
    try:
        return (folder / NAME).read_text().rstrip().endswith(f", {launch}")
    except OSError:
        return False


def _sign(file: io.FileIO, launch: str = "") -> None:
    with suppress(OSError):  # on a full disk the lock holds without the holder's name
        file.seek(0)
        file.truncate()
        file.write(", ".join(filter(None, (f"process {os.getpid()} on {platform.node()}", launch))).encode() + b"\n")


def _opened(folder: Path) -> io.FileIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return io.FileIO(os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
    except OSError as error:
        raise LtatError(f"cannot write {folder / NAME}: {error.strerror}; choose another folder") from None


def _holder(file: io.FileIO) -> str:
    name = "".join(filter(str.isprintable, file.read(200).decode(errors="replace")))
    return f"another run ({name})" if name else "another run"
