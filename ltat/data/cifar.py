"""CIFAR-10 and CIFAR-100 in the published folder layout (the one torchvision uses).

The published files are pickles. Each is compared with its published checksum first, and then read by an
unpickler that knows nothing but how to rebuild NumPy arrays, so that neither step can run code from a file.
"""

import hashlib
import io
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ltat.data.split import Dataset, Split
from ltat.errors import LtatError
from ltat.files import exists, read_bytes
from ltat.temporaries import sweep, temporary_folder

_LARGEST = 1 << 28  # bytes; the published files have up to 155 MB

Checksums = tuple[tuple[str, str], ...]  # (file name, MD5) pairs


@dataclass(frozen=True)
class CifarSource:
    """Where a CIFAR set lies and what its files must be."""

    name: str
    folder: str
    url: str
    archive: tuple[str, str]
    train: Checksums
    test: Checksums
    meta: tuple[str, str]
    labels_key: str
    names_key: str


def cifar10_source() -> CifarSource:
    """CIFAR-10's files, with the checksums torchvision publishes."""
    from torchvision.datasets import CIFAR10  # noqa: PLC0415  (seconds of import time)

    return _source("cifar10", CIFAR10, "labels")


def cifar100_source() -> CifarSource:
    """CIFAR-100's files, with the checksums torchvision publishes."""
    from torchvision.datasets import CIFAR100  # noqa: PLC0415  (seconds of import time)

    return _source("cifar100", CIFAR100, "fine_labels")


def _source(name: str, published: Any, labels_key: str) -> CifarSource:
    return CifarSource(
        name=name,
        folder=published.base_folder,
        url=published.url,
        archive=(published.filename, published.tgz_md5),
        train=tuple((file, md5) for file, md5 in published.train_list),
        test=tuple((file, md5) for file, md5 in published.test_list),
        meta=(published.meta["filename"], published.meta["md5"]),
        labels_key=labels_key,
        names_key=published.meta["key"],
    )


def load_cifar(source: Callable[[], CifarSource], data_dir: Path, download: bool = False) -> Dataset:
    """Read a CIFAR set from ``data_dir``; with ``download``, fetch it there first if it is missing.

    Returns:
        50,000 training and 10,000 test images, uint8 [N, 32, 32, 3].

    Raises:
        LtatError: a missing folder or file, a wrong checksum, or a failed download.
    """
    files = source()
    folder = data_dir / files.folder
    if not folder.is_dir():
        if not download:
            raise LtatError(
                f"{files.name}: there is no folder {folder}; "
                "pass --download to fetch it, or bring the images as an npz folder"
            )
        _download(files, data_dir)
    names = tuple(_read(folder, *files.meta)[files.names_key])
    train, test = (_split(folder, part, files.labels_key, names) for part in (files.train, files.test))
    return Dataset(files.name, train, test, names)


def _split(folder: Path, files: Checksums, labels_key: str, names: tuple[str, ...]) -> Split:
    parts = [_read(folder, *file) for file in files]
    planes = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([np.asarray(part[labels_key], dtype=np.int64) for part in parts])
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return Split(images, labels, len(names), np.arange(len(images)), names)


def _read(folder: Path, file: str, md5: str) -> dict[str, Any]:
    path = folder / file
    try:
        data = read_bytes(path, _LARGEST)
    except OSError as error:
        raise LtatError(f"{path} cannot be read ({error.strerror}); remove {folder} and download again") from error
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5:
        raise LtatError(f"{path} has MD5 {found} where {md5} is published; remove {folder} and download again")
    return plain_unpickle(data, path)


def plain_unpickle(data: bytes, path: Path) -> Any:
    """Unpickle numbers, strings, containers and NumPy arrays; anything else is refused.

    Raises:
        LtatError: the pickle asks for any other class or function, or is damaged.
    """
    try:
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises whatever its opcodes stumble over
        raise LtatError(f"{path} is not a plain CIFAR file ({error}); download it again") from error


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        rebuild = np.empty(0).__reduce__()[0]  # NumPy's own rebuilding function, wherever this version keeps it
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): rebuild,
            ("numpy._core.multiarray", "_reconstruct"): rebuild,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _latin1_bytes,
        }
        try:
            return allowed[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def _download(files: CifarSource, data_dir: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive  # noqa: PLC0415

    made = not exists(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    sweep(data_dir)
    archive, md5 = files.archive
    try:
        with temporary_folder(data_dir) as partial:
            download_and_extract_archive(files.url, str(partial), filename=archive, md5=md5)
            os.replace(partial / files.folder, data_dir / files.folder)
    except (OSError, RuntimeError, EOFError) as error:
        if made:
            data_dir.rmdir()
        raise LtatError(
            f"{files.name} could not be downloaded from {files.url} ({error}); "
            f"go online, or put the folder {files.folder} into {data_dir}"
        ) from error
