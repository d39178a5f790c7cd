"""One run in a folder at a time: a lock that the kernel holds, and lets go when its holder ends, however it ends.

It is ``flock``'s, on the file ``.lock`` of the folder, which stays there. A lock of ``fcntl`` belongs to a process: it
is lost when anything in the process closes the file, a copy of the folder for instance, and does not keep a second run
of the same process out. ``flock``'s belongs to the open file. On NFS, Linux turns it into a lock over the whole file at
the server, so it holds between machines; an exclusive one needs a file open for writing, which a folder cannot be. A
forked process would keep the file open beyond its parent's death, so it is closed there.
"""

import fcntl
import io
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ltat.errors import LtatError

NAME = ".lock"


@contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder, which is made if it is missing, for this run alone.

    Where the file system knows no locks, ``say`` is called with a line that says so, and nothing is held.

    Raises:
        LtatError: another run holds it, or it cannot be written.
    """
    with _opened(folder) as file:
        os.register_at_fork(after_in_child=file.close)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LtatError(
                f"{folder} is in use by {_holder(file)}; wait for it to end, or name another --out"
            ) from None
        except OSError as error:
            say(f"warning: {folder} cannot be locked ({error.strerror}); see that no second run uses it")
        else:
            with suppress(OSError):  # a full disk; the lock holds without a name
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
        yield


def require_unlocked(folder: Path) -> None:
    """Check that no other run holds the folder, before long preparations; creates nothing.

    Raises:
        LtatError: another run holds it.
    """
    if (folder / NAME).exists():
        with locked(folder, lambda line: None):
            pass


def _opened(folder: Path) -> io.FileIO:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return io.FileIO(os.open(folder / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
    except OSError as error:
        raise LtatError(f"cannot write {folder / NAME}: {error.strerror}; choose another folder") from None


def _holder(file: io.FileIO) -> str:
    name = "".join(filter(str.isprintable, file.read(200).decode(errors="replace")))
    return f"another run ({name})" if name else "another run"
