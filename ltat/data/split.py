"""A data set: uint8 images, labels, and the position of each image in its source."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ltat.data.images import Images, ImageStore
from ltat.data.plausibility import check_apart, check_layout, check_pixels, wrong_kind
from ltat.errors import LtatError

_PLACED_AT_ONCE = 1024  # images of a store read at once on their way to the device


@dataclass(frozen=True, eq=False)
class Split:
    """Images and labels of one part (training or test) of a dataset.

    Attributes:
        images: uint8 [N, H, W, ch], 0..255: a C-contiguous array, or a store that reads them on demand.
        labels: int64 [N], each in [0, num_classes).
        num_classes: number of classes; a class may be empty here (``load_dataset`` refuses that in training).
        indices: int64 [N], position of each image in the set it was taken from.
        class_names: one per class, or empty where they are not known.

    Raises:
        LtatError: a wrong type or shape, differing lengths, no images, or a label out of range.
    """

    images: Images
    labels: np.ndarray
    num_classes: int
    indices: np.ndarray
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_images(self.images)
        for name in ("labels", "indices"):
            _check_vector(name, getattr(self, name), len(self.images))
        check_labels(self.labels, self.num_classes)
        if self.class_names and len(self.class_names) != self.num_classes:
            raise LtatError(f"{len(self.class_names)} class names for {self.num_classes} classes; give one per class")

    @cached_property
    def counts(self) -> np.ndarray:
        """Images per class, int64 [num_classes]."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> "Split":
        """The images at these positions of this split, in that order; ``indices`` follows the source."""
        indices = check_positions(indices, len(self))
        images = self.images.subset(indices) if isinstance(self.images, ImageStore) else self.images[indices]
        return replace(self, images=images, labels=self.labels[indices], indices=self.indices[indices])

    def images_on(self, device: torch.device, on_progress: Callable[[int, int], None] | None = None) -> Tensor:
        """All images on a device, uint8 [N, H, W, ch], read and copied there once, on the first call.

        ``on_progress`` is called with (images read, images in all) where they are read from files.
        """
        if device not in self._on_devices:
            self._on_devices[device] = _place(self.images, device, on_progress or (lambda done, total: None))
        return self._on_devices[device]

    @cached_property
    def _on_devices(self) -> dict[torch.device, Tensor]:
        return {}


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split over the same classes and image shape.

    ``passed_over`` counts the skipped files and folders, by their kind. ``test_imbalance_ratio`` is that of
    a test split that was thinned to a long-tailed one, None where the split is the source's own.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    passed_over: Mapping[str, int] = field(default_factory=dict)
    test_imbalance_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.train.images.shape[1:] != self.test.images.shape[1:]:
            raise LtatError(
                f"{self.name}: training images are {self.train.images.shape[1:]} but test images are "
                f"{self.test.images.shape[1:]}; store both in the same height, width and channels"
            )
        if not self.train.num_classes == self.test.num_classes == len(self.class_names):
            raise LtatError(
                f"{self.name}: {self.train.num_classes} training classes, {self.test.num_classes} test "
                f"classes and {len(self.class_names)} class names do not agree; give one name per class"
            )
        check_layout(self.train.images.shape)
        if isinstance(self.train.images, np.ndarray) and isinstance(self.test.images, np.ndarray):
            check_pixels(self.train.images, "training")
            check_apart(self.train.images, self.test.images)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.train.num_classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels


def listed(passed_over: Mapping[str, int]) -> str:
    """What was passed over, in words: ``3 × file of .gif, 1 × folder .git``."""
    return ", ".join(f"{number} × {kind}" for kind, number in sorted(passed_over.items()))


def index_hash(indices: np.ndarray) -> str:
    """SHA-256 (hex) of the indices as little-endian int64 bytes: one line that names a subset."""
    return hashlib.sha256(np.ascontiguousarray(indices, dtype="<i8").tobytes()).hexdigest()


def check_labels(labels: np.ndarray, num_classes: int) -> None:
    """Refuse integer labels [N] outside [0, num_classes), naming the first and its position."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise LtatError(
            f"label {labels[wrong[0]]} at position {wrong[0]} is outside 0..{num_classes - 1}; "
            "correct the labels or the number of classes"
        )


def check_positions(indices: np.ndarray, size: int) -> np.ndarray:
    """The indices as int64 [M], refused unless they are integers in [0, size) (repeats are allowed)."""
    indices = np.asarray(indices)
    if indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise LtatError(f"indices are {indices.dtype} with {indices.ndim} dimensions; give a vector of integers")
    wrong = np.flatnonzero((indices < 0) | (indices >= size))
    if len(wrong):
        raise LtatError(f"index {indices[wrong[0]]} is outside the set of {size} images; use 0..{size - 1}")
    return indices.astype(np.int64)


def _place(images: Images, device: torch.device, on_progress: Callable[[int, int], None]) -> Tensor:
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images).to(device)
    placed = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), _PLACED_AT_ONCE):
        here = slice(start, start + _PLACED_AT_ONCE)
        placed[here] = torch.from_numpy(images[here])
        on_progress(min(here.stop, len(images)), len(images))
    return placed


def _check_images(images: Images) -> None:
    if isinstance(images, ImageStore):
        return
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        kind = getattr(images, "dtype", type(images).__name__)
        broken = " with NaN" if isinstance(images, np.ndarray) and _has_nan(images) else ""
        known = wrong_kind(images) if isinstance(images, np.ndarray) else "; store them as uint8, 0..255"
        raise LtatError(f"images are {kind}{broken}{known}")
    if images.ndim != 4 or 0 in images.shape:
        raise LtatError(f"images have shape {images.shape}; store them as [N, H, W, ch], none of them 0")
    if not images.flags.c_contiguous:
        raise LtatError("images are not C-contiguous; pass np.ascontiguousarray(images)")


def _has_nan(images: np.ndarray) -> bool:
    return np.issubdtype(images.dtype, np.floating) and bool(np.isnan(images).any())


def _check_vector(name: str, values: np.ndarray, length: int) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != np.int64 or values.shape != (length,):
        shape = getattr(values, "shape", None)
        kind = getattr(values, "dtype", type(values).__name__)
        raise LtatError(f"{name} are {kind} of shape {shape} for {length} images; give int64 [{length}]")
