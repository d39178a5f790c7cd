"""MedMNIST: medical images in the published .npz files (Yang et al., Scientific Data 2023)."""

from pathlib import Path

import numpy as np

from ltat.data.folders import refuse_download
from ltat.data.npz import arrays_dataset, load_array
from ltat.data.split import Dataset
from ltat.errors import LtatError


def load_medmnist(data_dir: Path, download: bool = False) -> Dataset:
    """Read a published file such as ``dermamnist.npz`` or ``pathmnist_64.npz``, or the folder it lies in alone.

    Grey sets have one channel; classes are named by their numbers. The published validation part is not used:
    a run holds out a part of its training images (``select.holdout``).

    Raises:
        LtatError: no such file or several, a damaged one, missing arrays, several labels per image (ChestMNIST),
            or volumes instead of images.
    """
    refuse_download(download, "a MedMNIST file", data_dir)
    path = _find(data_dir)
    arrays = load_array(path)
    train, test = (
        {"images": _images(arrays, part, path), "labels": _labels(arrays, part, path)} for part in ("train", "test")
    )
    return arrays_dataset(path.stem, train, test, path, path)


def _find(data_dir: Path) -> Path:
    if not data_dir.is_dir():
        return data_dir
    found = sorted(file for file in data_dir.glob("*.npz") if not file.name.startswith("."))
    if len(found) != 1:
        raise LtatError(f"{data_dir} holds {len(found)} .npz files; name the one to read with --data-dir FILE")
    return found[0]


def _array(arrays: dict[str, np.ndarray], key: str, path: Path) -> np.ndarray:
    if key not in arrays:
        raise LtatError(f"{path} has no {key!r} (it holds {sorted(arrays)}); give a published MedMNIST file")
    return arrays[key]


def _images(arrays: dict[str, np.ndarray], part: str, path: Path) -> np.ndarray:
    images = _array(arrays, f"{part}_images", path)
    if images.ndim == 3:
        return images[..., None]
    if images.ndim != 4 or images.shape[-1] != 3:
        raise LtatError(
            f"{part}_images in {path} have shape {images.shape}; only images, [N, H, W] or [N, H, W, 3], can be used"
        )
    return images


def _labels(arrays: dict[str, np.ndarray], part: str, path: Path) -> np.ndarray:
    labels = _array(arrays, f"{part}_labels", path)
    if labels.ndim != 2 or labels.shape[1] != 1:
        raise LtatError(
            f"{part}_labels in {path} have shape {labels.shape}; only sets of one label per image, [N, 1], can be used"
        )
    return labels[:, 0]
