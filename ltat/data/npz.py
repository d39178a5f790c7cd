"""Anyone's own data: a folder with ``train.npz`` and ``test.npz``."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from ltat.data.grouping import resolve_labels
from ltat.data.split import Dataset, Split
from ltat.errors import LtatError

T = TypeVar("T")


def load_npz(data_dir: Path, download: bool = False) -> Dataset:
    """Read a folder with ``train.npz`` and ``test.npz``.

    Each holds ``images`` (uint8 [N, H, W, C]) and ``labels`` (integers [N], from 0). Optional: ``index``
    (integers [N], positions in an original set) in either, ``class_names`` (strings [C]) in ``train.npz``.
    Without names there are as many classes as the largest training label says. Nothing in the files is ever
    executed (no pickles). ``download`` does not apply.

    Raises:
        LtatError: a missing, truncated, altered or foreign file, a missing key, a wrong type or shape, or a
            label out of range.
    """
    if download:
        raise LtatError(f"an npz folder cannot be downloaded; put train.npz and test.npz into {data_dir}")
    train, test = _read(data_dir / "train.npz"), _read(data_dir / "test.npz")
    names = _class_names(train, data_dir / "train.npz")
    return Dataset(
        data_dir.name,
        _split(train, len(names), data_dir / "train.npz"),
        _split(test, len(names), data_dir / "test.npz"),
        names,
    )


def load_array(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file, or the one of an ``.npy`` file under the name "".

    Raises:
        LtatError: the file is missing, damaged, or not one of these; pickled objects are refused.
    """
    if not path.is_file():
        raise LtatError(f"there is no file {path}; check the folder or write it first")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            arrays = {key: loaded[key] for key in loaded.files}
    except Exception as error:  # a damaged archive raises whatever zipfile, zlib or NumPy stumbles over
        raise LtatError(f"{path} cannot be read as plain NumPy arrays ({_reason(error)}); write it again") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise LtatError(f"{path} is an archive of other files than NumPy arrays; write it with numpy.savez")
    return arrays


def _reason(error: Exception) -> str:
    told = str(error).partition("\n")[0] or type(error).__name__
    # NumPy advises allow_pickle=True here, which would run whatever code the file holds.
    return "it holds Python objects, or is no NumPy file" if "allow_pickle" in told else told


def _read(path: Path) -> dict[str, np.ndarray]:
    arrays = load_array(path)
    missing = [key for key in ("images", "labels") if key not in arrays]
    if missing:
        raise LtatError(
            f"{path} has no {missing[0]!r} (it holds {sorted(arrays)}); store images [N, H, W, C] and labels [N]"
        )
    length = arrays["images"].shape[0] if arrays["images"].ndim else 0
    for key in ("labels", "index"):
        if key in arrays:
            _check_integers(arrays[key], length, f"{key} in {path}")
    return arrays


def _check_integers(values: np.ndarray, length: int, name: str) -> None:
    if not np.issubdtype(values.dtype, np.integer) or values.shape != (length,):
        raise LtatError(
            f"{name} are {values.dtype} of shape {values.shape} for {length} images; "
            f"store integers of shape ({length},)"
        )


def _class_names(train: dict[str, np.ndarray], path: Path) -> tuple[str, ...]:
    if "class_names" not in train:
        _, num_classes = _named(path, resolve_labels, train["labels"], None)
        return tuple(str(label) for label in range(num_classes))
    names = train["class_names"]
    if names.ndim != 1 or names.dtype.kind != "U":
        raise LtatError(f"class_names in {path} are {names.dtype} of shape {names.shape}; store strings [C]")
    return tuple(str(name) for name in names)


def _split(arrays: dict[str, np.ndarray], num_classes: int, path: Path) -> Split:
    labels, _ = _named(path, resolve_labels, arrays["labels"], num_classes)
    index = arrays.get("index", np.arange(len(labels))).astype(np.int64)
    return _named(path, Split, np.ascontiguousarray(arrays["images"]), labels, num_classes, index)


def _named(path: Path, call: Callable[..., T], *arguments: object) -> T:
    """``call(*arguments)``, with the file's name before the sentence of any error."""
    try:
        return call(*arguments)
    except LtatError as error:
        raise LtatError(f"{path}: {error}") from error
