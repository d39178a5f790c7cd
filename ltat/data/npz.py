"""Anyone's own data: a folder with ``train.npz`` and ``test.npz``."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ltat.data.grouping import MAX_CLASSES, resolve_labels
from ltat.data.plausibility import label_hint
from ltat.data.split import Dataset, Split, check_positions
from ltat.errors import LtatError
from ltat.files import replacing, require_file
from ltat.memory import require_memory_for

_WRITTEN_AT_ONCE = 256  # images of a store held in memory on their way to the file

T = TypeVar("T")


def load_npz(data_dir: Path, download: bool = False) -> Dataset:
    """Read a folder with ``train.npz`` and ``test.npz``.

    Each holds ``images`` (uint8 [N, H, W, ch]) and ``labels`` (integers [N], from 0). Optional: ``index``
    (integers [N], positions in an original set) in either, ``class_names`` (strings [C]) in ``train.npz``.
    Without names there are as many classes as the largest training label requires. Nothing in the files is ever
    executed (no pickles). ``download`` does not apply.

    Raises:
        LtatError: a missing, truncated, altered or foreign file, a missing key, a wrong type or shape, or a
            label out of range.
    """
    if download:
        raise LtatError(f"an npz folder cannot be downloaded; put train.npz and test.npz into {data_dir}")
    files = data_dir / "train.npz", data_dir / "test.npz"
    train, test = map(load_array, files)
    return arrays_dataset(data_dir.absolute().name, train, test, *files)


def arrays_dataset(
    name: str, train: dict[str, np.ndarray], test: dict[str, np.ndarray], train_file: Path, test_file: Path
) -> Dataset:
    """A dataset of arrays as ``load_npz`` describes them; the files are named where something is wrong.

    Raises:
        LtatError: a missing key, a wrong type or shape, or a label out of range.
    """
    _check_arrays(train, train_file)
    _check_arrays(test, test_file)
    names = _class_names(train, train_file)
    return Dataset(name, _split(train, names, train_file), _split(test, names, test_file), names)


def write_npz(
    split: Split, path: Path, class_names: Sequence[str], *, on_progress: Callable[[int, int], None] | None = None
) -> None:
    """Write a split as a file that ``load_npz`` reads, a few images at a time.

    Args:
        split: the images and labels; images of a store are read as they are written.
        path: the file; it appears when it is complete, and a file that stood there is replaced.
        class_names: of the C classes.
        on_progress: called with the images written so far and the number of all.

    Raises:
        LtatError: the place cannot be written, the disk is full, or an image cannot be read; nothing is left.
    """
    rest = {"labels": split.labels, "index": split.indices, "class_names": np.array(class_names)}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": split.images.shape}
            np.lib.format.write_array_header_1_0(member, header)
            for start in range(0, len(split), _WRITTEN_AT_ONCE):
                member.write(split.images[start : start + _WRITTEN_AT_ONCE].tobytes())
                if on_progress is not None:
                    on_progress(min(start + _WRITTEN_AT_ONCE, len(split)), len(split))
        for name, values in rest.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def load_array(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file, or the one of an ``.npy`` file under the name "".

    Raises:
        LtatError: the file is missing, damaged, or not one of these, or unpacks to more than fits into memory;
            pickled objects are refused.
    """
    try:
        require_file(path)
    except OSError as error:
        raise LtatError(f"{path} cannot be read ({error.strerror}); check the folder or write it first") from None
    try:
        require_memory_for(path)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            arrays = {key: loaded[key] for key in loaded.files}
    except LtatError:
        raise
    except Exception as error:  # a damaged archive raises whatever zipfile, zlib or NumPy stumbles over
        raise LtatError(f"{path} cannot be read as plain NumPy arrays ({_reason(error)}); write it again") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise LtatError(f"{path} is an archive of other files than NumPy arrays; write it with numpy.savez")
    return arrays


def load_positions(path: Path, size: int) -> np.ndarray:
    """Positions in a set of ``size`` images, int64 [M], from an .npy file or an .npz file with one array.

    Raises:
        LtatError: naming the file, which cannot be read, holds something else, or points outside the set.
    """
    arrays = load_array(path)
    if len(arrays) != 1:
        raise LtatError(f"{path} holds {len(arrays)} arrays ({', '.join(sorted(arrays))}); store one, positions")
    return _named(path, check_positions, next(iter(arrays.values())), size)


def _reason(error: Exception) -> str:
    message = str(error).partition("\n")[0] or type(error).__name__
    # NumPy advises allow_pickle=True here, which would run whatever code the file holds.
    return "it holds Python objects, or is not a NumPy file" if "allow_pickle" in message else message


def _check_arrays(arrays: dict[str, np.ndarray], path: Path) -> None:
    missing = [key for key in ("images", "labels") if key not in arrays]
    if missing:
        raise LtatError(
            f"{path} has no {missing[0]!r} (it holds {sorted(arrays)}); store images [N, H, W, ch] and labels [N]"
        )
    length = arrays["images"].shape[0] if arrays["images"].ndim else 0
    for key in ("labels", "index"):
        if key in arrays:
            _check_integers(arrays[key], length, f"{key} in {path}")
    index = arrays.get("index", np.arange(length))
    wrong = index[(index < 0) | (index > np.iinfo(np.int64).max)]
    if len(wrong):
        raise LtatError(f"index in {path} holds {wrong[0]}, which is not a position; count the original images from 0")


def _check_integers(values: np.ndarray, length: int, name: str) -> None:
    if not np.issubdtype(values.dtype, np.integer) or values.shape != (length,):
        raise LtatError(
            f"{name} are {values.dtype} of shape {values.shape} for {length} images{label_hint(values, length)}"
        )


def _class_names(train: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    if "class_names" not in train:
        _, num_classes = _named(path, resolve_labels, train["labels"], None)
        return tuple(str(label) for label in range(num_classes))
    names = train["class_names"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise LtatError(f"class_names in {path} are {names.dtype} of shape {names.shape}; store strings [C]")
    if len(names) > MAX_CLASSES:
        raise LtatError(f"{path} names {len(names)} classes where {MAX_CLASSES} are the most; store those there are")
    return tuple(str(name) for name in names)


def _split(arrays: dict[str, np.ndarray], names: tuple[str, ...], path: Path) -> Split:
    labels, _ = _named(path, resolve_labels, arrays["labels"], len(names))
    index = arrays.get("index", np.arange(len(labels))).astype(np.int64)
    return _named(path, Split, np.ascontiguousarray(arrays["images"]), labels, len(names), index, names)


def _named(path: Path, call: Callable[..., T], *arguments: object) -> T:
    """``call(*arguments)``, with the file's name before the sentence of any error."""
    try:
        return call(*arguments)
    except LtatError as error:
        raise LtatError(f"{path}: {error}") from error
