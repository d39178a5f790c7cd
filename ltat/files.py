"""Reading and writing files: a result is either complete or not there, and only files are read."""

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from ltat.errors import LtatError
from ltat.temporaries import sweep, temporary_file, temporary_folder

_ROOM = "free some space or choose another folder"


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a crash at any moment leaves the old file or the new one, whole.

    The folder is made if it is missing. A link stays, and its target is replaced. A pipe, a device and standard
    output (``/dev/stdout``) cannot be replaced and are written to as they are.

    Raises:
        LtatError: the disk is full or the place cannot be written; nothing half-written stays behind.
    """
    atomic_write_all({Path(path): data})


def atomic_write_text(path: str | Path, text: str) -> None:
    """``atomic_write_bytes`` for text, as UTF-8."""
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        wrong = text[max(0, error.start - 20) : error.end]
        raise LtatError(f"{path} cannot hold {wrong!a}, which is not UTF-8; rename the file it names") from None
    atomic_write_bytes(path, data)


def atomic_write_all(contents: Mapping[Path, bytes]) -> None:
    """Write several files that belong together, each one as ``atomic_write_bytes`` does.

    All are safely on the disk before the first takes its final name, so only the renames stand between the
    old set and the new one.
    """
    with _reported(*contents), contextlib.ExitStack() as stack:
        places = {path: _ready_place(path) for path in contents}
        files = {path: place for path, place in places.items() if place is not None}
        written = [
            (stack.enter_context(_written(place.parent, contents[path])), place) for path, place in files.items()
        ]
        for temporary, place in written:
            _put(temporary, place)
        for folder in {place.parent for place in files.values()}:
            _sync_folder(folder)
        for path in places.keys() - files.keys():
            with _stream(path) as stream:
                stream.write(contents[path])


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """For a file too large to hold in memory: a temporary path that becomes ``path`` at the end.

    An exception inside, or a full disk, leaves what stood under ``path`` before and nothing else. Several files
    that belong together are written in nested contexts: none takes its name before all are complete. Links, pipes
    and devices: see ``atomic_write_bytes``.

    Raises:
        LtatError: the place cannot be written, or the disk is full.
    """
    with _reported(path):
        place = _ready_place(path)
        with temporary_file(Path(tempfile.gettempdir()) if place is None else place.parent) as temporary:
            yield temporary
            if place is None:
                with temporary.open("rb") as whole, _stream(path) as stream:
                    shutil.copyfileobj(whole, stream)
            else:
                _finish(temporary)
                _put(temporary, place)
                _sync_folder(place.parent)


@contextlib.contextmanager
def appearing_together(folder: Path) -> Iterator[Path]:
    """A temporary folder, whose files move into ``folder`` at the end: large files that belong together.

    An exception inside, or a full disk, leaves in ``folder`` what stood there before and nothing else.

    Raises:
        LtatError: the place cannot be written, or the disk is full.
    """
    made = not exists(folder)
    try:
        with _reported(folder):
            _refuse_dangling(folder / "file")
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            with temporary_folder(folder) as temporary:
                try:
                    yield temporary
                except LtatError as error:  # name the folder that the reader knows
                    raise LtatError(str(error).replace(str(temporary), str(folder))) from error
                for path in sorted(temporary.iterdir()):
                    os.replace(path, _place(folder / path.name) or folder / path.name)
            _sync_folder(folder)
    finally:
        if made:
            with contextlib.suppress(OSError):  # it is not empty, which is as it should be
                folder.rmdir()


def check_writable(path: Path) -> None:
    """Find out before a long computation whether its result can be written to ``path``; leaves nothing behind.

    Raises:
        LtatError: a file stands where a folder is needed, or nothing can be written there.
    """
    with _reported(path, remedy="choose another folder"):
        place = _place(path)
        if place is not None:
            folder = next(parent for parent in place.parents if parent.exists())
            tempfile.TemporaryFile(dir=folder).close()
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_outputs(outputs: Mapping[str, Path | None], kept: Mapping[str, Path | None] | None = None) -> None:
    """``check_writable`` for all outputs of a command, which must also lie apart and spare what the command reads.

    Args:
        outputs: paths by the options that name them; ``None`` where an option is not given.
        kept: files that must stay, by words for them.

    Raises:
        LtatError: naming the options that are in each other's way, or what cannot be written.
    """
    given = {name: path for name, path in outputs.items() if path is not None}
    for path in given.values():
        check_writable(path)
    real = {name: Path(os.path.realpath(path)) for name, path in given.items()}
    for name, place in real.items():
        if exists(place) and not place.is_file() and not place.is_dir():
            continue  # a pipe or a device replaces nothing
        for other, its_place in real.items():
            if other != name and (place == its_place or place in its_place.parents):
                raise LtatError(f"{name} and {other} both write to {given[name]}; name two places")
        for what, file in (kept or {}).items():
            if file is not None and place == Path(os.path.realpath(file)):
                raise LtatError(f"{name} {given[name]} would replace {what}; name another file")


def exists(path: Path) -> bool:
    """Whether anything stands under ``path``.

    Raises:
        LtatError: the system refuses the answer, as in a folder without permission to search.
    """
    try:
        return path.exists()
    except OSError as error:
        raise LtatError(f"{path} cannot be looked for ({error.strerror}); check the path and its folders") from None


def require_file(path: str | Path, largest: int | None = None) -> None:
    """Refuse before it is opened what would be waited for or read without end: a pipe, a device, a giant.

    Args:
        path: a file; links are followed.
        largest: bytes that it may have.

    Raises:
        OSError: it is missing, no regular file, or too large; ``strerror`` is the reason.
    """
    _refuse_null(path)
    found = os.stat(path)
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, no file", str(path))
    if largest is not None and found.st_size > largest:
        size = f"{found.st_size / 1e6:,.0f} MB where {largest / 1e6:,.0f} MB are the most"
        raise OSError(errno.EFBIG, f"it has {size}", str(path))


def read_bytes(path: str | Path, largest: int | None = None) -> bytes:
    """The content of a file, once ``require_file`` has found nothing against it.

    Raises:
        OSError: as ``require_file``, or it cannot be read.
    """
    require_file(path, largest)
    return Path(path).read_bytes()


def read_text(path: str | Path, largest: int | None = None) -> str:
    """``read_bytes`` as UTF-8 text, without the mark that some editors put before it.

    Raises:
        OSError: as ``read_bytes``.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, largest).decode("utf-8-sig")


@contextlib.contextmanager
def _reported(*paths: Path, remedy: str = _ROOM) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        names = ", ".join(map(str, paths))
        raise LtatError(f"cannot write {names}: {error.strerror or error}; {remedy}") from error


def _ready_place(path: Path) -> Path | None:
    """``_place``, its folder made and swept."""
    place = _place(path)
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place.parent)
    return place


def _place(path: Path) -> Path | None:
    """The name that a result takes when links are followed; None where no file is to be replaced but written to."""
    _refuse_dangling(path)
    real = Path(os.path.realpath(path))
    try:
        found = os.stat(path)  # follows also such links as /dev/stdout, which have no real name
    except FileNotFoundError:
        return real
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    if stat.S_ISBLK(found.st_mode):
        raise OSError(errno.EINVAL, "it is a whole disk")
    return real if stat.S_ISREG(found.st_mode) and _own_stream(found) is None else None


def _refuse_null(path: str | Path) -> None:
    if "\0" in str(path):  # the system's own functions raise a ValueError
        raise OSError(errno.EINVAL, "its name holds a null character", str(path))


def _refuse_dangling(path: Path) -> None:
    _refuse_null(path)
    for link in (path, *path.parents):
        if link.is_symlink() and not os.path.exists(link):
            target = Path(os.path.realpath(link))
            if link != path or not target.parent.is_dir():
                raise FileNotFoundError(errno.ENOENT, f"{link} is a link to {target}, which does not exist")


def _own_stream(found: os.stat_result) -> int | None:
    """Standard output or error, where the file is one of these: another file in its place would part them."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(number), found):
                return number
    return None


@contextlib.contextmanager
def _stream(path: Path) -> Iterator[BinaryIO]:
    own = _own_stream(os.stat(path))
    with open(path if own is None else os.dup(own), "wb") as stream:
        yield stream


@contextlib.contextmanager
def _written(folder: Path, data: bytes) -> Iterator[Path]:
    with temporary_file(folder) as temporary:
        temporary.write_bytes(data)
        _finish(temporary)
        yield temporary


def _finish(temporary: Path) -> None:
    with temporary.open("rb+") as file:
        os.fchmod(file.fileno(), 0o666 & ~_umask())  # a temporary's 0600 would hide results from the group
        os.fsync(file.fileno())


def _put(temporary: Path, place: Path) -> None:
    try:
        os.replace(temporary, place)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copyfile(temporary, place)  # a file mounted by itself, as into a container, keeps its name


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
