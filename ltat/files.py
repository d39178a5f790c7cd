"""Files that are either complete or not there."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from ltat.errors import LtatError


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a crash at any moment leaves the old file or the new one, whole.

    The folder is made if it is missing. Raises ``LtatError`` when the disk is full or the place cannot be
    written; nothing half-written stays behind.
    """
    atomic_write_all({Path(path): data})


def atomic_write_text(path: str | Path, text: str) -> None:
    """``atomic_write_bytes`` for text, as UTF-8."""
    atomic_write_bytes(path, text.encode())


def atomic_write_all(contents: Mapping[Path, bytes]) -> None:
    """Write several files that belong together (all in one folder), each one atomically.

    All are safely on the disk before the first takes its final name, so only the renames stand between the
    old set and the new one.
    """
    try:
        for folder in {path.parent for path in contents}:
            folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            written = [(stack.enter_context(_temporary(path, data)), path) for path, data in contents.items()]
            for temporary, path in written:
                os.replace(temporary, path)
        for folder in {path.parent for path in contents}:
            _sync_folder(folder)
    except OSError as error:
        names = ", ".join(str(path) for path in contents)
        raise LtatError(
            f"cannot write {names}: {error.strerror or error}; free some space or choose another folder"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """For a file too large to hold in memory: a temporary path that becomes ``path`` at the end.

    An exception inside, or a full disk, leaves what stood under ``path`` before and nothing else. Several files
    that belong together are written in nested contexts: none takes its name before all are complete.

    Raises:
        LtatError: the place cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path, b"") as temporary:
            yield Path(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise LtatError(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error


@contextlib.contextmanager
def appearing_together(folder: Path) -> Iterator[Path]:
    """A temporary folder, whose files move into ``folder`` at the end: large files that belong together.

    An exception inside, or a full disk, leaves in ``folder`` what stood there before and nothing else.

    Raises:
        LtatError: the place cannot be written, or the disk is full.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".tmp") as temporary:
            try:
                yield Path(temporary)
            except LtatError as error:  # tell it of the place that the reader knows
                raise LtatError(str(error).replace(temporary, str(folder))) from error
            for path in sorted(Path(temporary).iterdir()):
                os.replace(path, folder / path.name)
        _sync_folder(folder)
    except OSError as error:
        raise LtatError(
            f"cannot write {folder}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    finally:
        if made:
            with contextlib.suppress(OSError):  # it is not empty, which is as it should be
                folder.rmdir()


def check_writable(path: Path) -> None:
    """Find out before a long computation whether its result can be written to ``path``; leaves nothing behind.

    Raises:
        LtatError: a file stands where a folder is needed, or nothing can be written there.
    """
    try:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise LtatError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error


@contextlib.contextmanager
def _temporary(path: Path, data: bytes) -> Iterator[str]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())  # mkstemp's 0600 would hide results from the group
            os.fsync(file.fileno())
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
