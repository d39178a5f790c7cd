"""Every dataset by name, and the one function that loads them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ltat.data.beton.dataset import load_beton
from ltat.data.cifar import cifar10_source, cifar100_source, load_cifar
from ltat.data.digits import load_digits
from ltat.data.folders import load_image_folder, load_image_list
from ltat.data.longtail import longtail_indices
from ltat.data.medmnist import load_medmnist
from ltat.data.npz import load_npz, load_positions
from ltat.data.split import Dataset, Split, listed
from ltat.data.tiny_imagenet import load_tiny_imagenet
from ltat.errors import LtatError
from ltat.units import check_image_size


@dataclass(frozen=True)
class DatasetSpec:
    """How a dataset is read, and the usual way to train on it.

    Attributes:
        load: ``load(data_dir, download, **settings)`` gives the full dataset.
        default_ratio: the imbalance ratio of the main published setting, or "natural" (the set as it is).
        flip: whether mirrored images keep their class.
        pad: pixels of padding before the random crop.
        needs_dir: whether ``data_dir`` must be given.
        summary: one line for people.
        settings: which of ``image_size``, ``channels``, ``train_list`` and ``test_list`` it takes.
    """

    load: Callable[..., Dataset]
    default_ratio: float | str
    flip: bool
    pad: int
    needs_dir: bool
    summary: str
    settings: tuple[str, ...] = ()


DATASETS: dict[str, DatasetSpec] = {
    "digits": DatasetSpec(load_digits, 20.0, False, 0, False, "scikit-learn's digits, 8x8 grey, 10 classes"),
    "cifar10": DatasetSpec(
        partial(load_cifar, cifar10_source), 50.0, True, 4, True, "CIFAR-10, 32x32 colour, 10 classes"
    ),
    "cifar100": DatasetSpec(
        partial(load_cifar, cifar100_source), 10.0, True, 4, True, "CIFAR-100, 32x32 colour, 100 classes"
    ),
    "tiny-imagenet": DatasetSpec(
        load_tiny_imagenet, 10.0, True, 4, True, "Tiny-ImageNet, 64x64 colour, 200 classes", ("image_size",)
    ),
    # Not mirrored by default: organs lie left or right.
    "medmnist": DatasetSpec(load_medmnist, "natural", False, 4, True, "a MedMNIST .npz file, 28x28 to 224x224"),
    "imagefolder": DatasetSpec(
        load_image_folder,
        "natural",
        True,
        4,
        True,
        "your own images: train/CLASS/ and test/CLASS/ in a folder",
        ("image_size", "channels"),
    ),
    "imagelist": DatasetSpec(
        load_image_list,
        "natural",
        True,
        4,
        True,
        "image files and labels named in text files, as for ImageNet-LT",
        ("image_size", "channels", "train_list", "test_list"),
    ),
    "beton": DatasetSpec(load_beton, "natural", True, 4, True, "train.beton and test.beton, streamed by FFCV"),
    "npz": DatasetSpec(load_npz, "natural", True, 4, True, "your own images: train.npz and test.npz in a folder"),
}


def load_dataset(
    name: str,
    data_dir: str | Path | None = None,
    *,
    imbalance_ratio: float | str = "natural",
    test_imbalance_ratio: float | str = "natural",
    subset_seed: int = 0,
    imbalance: str = "exp",
    class_order: str = "label",
    split_file: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    channels: int | None = None,
    train_list: str | Path | None = None,
    test_list: str | Path | None = None,
) -> Dataset:
    """Load a dataset by name; the test split is the full one unless ``test_imbalance_ratio`` is a number.

    Args:
        name: a key of ``DATASETS``.
        data_dir: the folder the dataset lies in (``digits`` needs none).
        imbalance_ratio: "natural" keeps the training set as it is; a number of at least 1 takes the
            long-tailed subset of that ratio (``longtail_indices``).
        test_imbalance_ratio: the same for the test set; TAET (CVPR 2025) tests on such a subset.
        subset_seed: seed of the subsets; 0 is the published one.
        imbalance: profile of the subsets, "exp" or "step".
        class_order: "label" or "permuted".
        split_file: an .npy or .npz file of training positions to use instead of drawing a subset.
        download: fetch a missing dataset, where it has an address.
        image_size: image files: the centre square of each is scaled to this height and width.
        channels: image files: 3 converts every image to RGB, 1 to grey.
        train_list: ``imagelist``: the text file that names the training images and their labels.
        test_list: ``imagelist``: the same for the test images.

    Raises:
        LtatError: an unknown name, a setting that does not apply to the dataset, a missing folder, broken files,
            a training class without images, or a test class too small for the ratio.
    """
    settings = {"image_size": image_size, "channels": channels, "train_list": train_list, "test_list": test_list}
    dataset = _whole(name, data_dir, download, {key: value for key, value in settings.items() if value is not None})
    if split_file is not None:
        dataset = _with_listed_train(dataset, Path(split_file), imbalance_ratio)
    elif imbalance_ratio != "natural":
        dataset = _with_long_tailed_train(dataset, _ratio(imbalance_ratio), subset_seed, imbalance, class_order)
    _check_no_empty_class(dataset)
    if test_imbalance_ratio == "natural":
        return dataset
    return _with_long_tailed_test(dataset, _ratio(test_imbalance_ratio), subset_seed, imbalance, class_order)


def find_spec(name: str) -> DatasetSpec:
    """The entry of ``DATASETS`` called ``name``; ``LtatError`` with the known names where there is none."""
    if name not in DATASETS:
        raise LtatError(f"unknown dataset {name!r}; choose one of {', '.join(DATASETS)}")
    return DATASETS[name]


def _whole(name: str, data_dir: str | Path | None, download: bool, given: Mapping[str, Any]) -> Dataset:
    spec = find_spec(name)
    _check_settings(name, spec, given)
    try:
        return spec.load(_folder(name, spec, data_dir), download, **given)
    except OSError as error:  # such as a folder on the way that may not be searched
        place = error.filename or data_dir
        raise LtatError(f"dataset {name!r} cannot be read: {place} ({error.strerror}); check the folder") from error


def _with_listed_train(dataset: Dataset, split_file: Path, imbalance_ratio: float | str) -> Dataset:
    if imbalance_ratio != "natural":
        raise LtatError(
            f"a split file and imbalance ratio {imbalance_ratio} exclude each other; "
            "with a split file, set the ratio to natural"
        )
    return replace(dataset, train=dataset.train.subset(_positions_from_file(split_file, dataset.train)))


def _with_long_tailed_train(dataset: Dataset, ratio: float, seed: int, profile: str, class_order: str) -> Dataset:
    chosen = longtail_indices(
        dataset.train.labels, ratio, seed, num_classes=dataset.num_classes, kind=profile, class_order=class_order
    )
    return replace(dataset, train=dataset.train.subset(chosen))


def _check_settings(name: str, spec: DatasetSpec, given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if key not in spec.settings:
            raise LtatError(f"dataset {name!r} takes no {key} (here {value}); leave it out")
    if "image_size" in given:
        check_image_size("image_size", given["image_size"])


def _folder(name: str, spec: DatasetSpec, data_dir: str | Path | None) -> Path:
    if data_dir is None:
        if spec.needs_dir:
            raise LtatError(f"dataset {name!r} lies in a folder; say which with --data-dir")
        return Path()
    if not spec.needs_dir:
        raise LtatError(f"dataset {name!r} lies in no folder (here {data_dir}); leave --data-dir out, or name another")
    return Path(data_dir).expanduser()


def _ratio(value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        raise LtatError(f"imbalance ratio {value!r} is neither a number nor 'natural'; give one of these") from None


def _with_long_tailed_test(dataset: Dataset, ratio: float, seed: int, kind: str, class_order: str) -> Dataset:
    try:
        chosen = longtail_indices(
            dataset.test.labels, ratio, seed, num_classes=dataset.num_classes, kind=kind, class_order=class_order
        )
    except LtatError as error:
        raise LtatError(f"the test set of {dataset.name} cannot be made long-tailed: {error}") from None
    return replace(dataset, test=dataset.test.subset(chosen), test_imbalance_ratio=ratio)


def _positions_from_file(path: Path, train: Split) -> np.ndarray:
    positions = load_positions(path, len(train))
    values, copies = np.unique(positions, return_counts=True)
    if (copies > 1).any():
        raise LtatError(f"{path} names image {values[np.argmax(copies)]} more than once; list each image once")
    return positions


def _check_no_empty_class(dataset: Dataset) -> None:
    counts = dataset.train.counts
    if not counts.all():
        empty = int(np.argmin(counts))
        beside = f" (passed over: {listed(dataset.passed_over)})" if dataset.passed_over else ""
        if empty == 0 and counts[1:].all():
            raise LtatError(
                f"{dataset.name}: class 0 ({dataset.class_names[0]}) has no training image and every other has, which "
                f"looks like labels that count from 1{beside}; store labels - 1, or add images of it"
            )
        raise LtatError(
            f"{dataset.name}: class {empty} ({dataset.class_names[empty]}) has no training image{beside}; "
            "add images of it or leave the class out"
        )
