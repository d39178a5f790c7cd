"""Which images each class has."""

import numpy as np

from ltat import native
from ltat.data.split import check_labels
from ltat.errors import LtatError

MAX_CLASSES = 1_000_000  # a wild label must not make us count a billion billion classes


def resolve_labels(labels: np.ndarray, num_classes: int | None) -> tuple[np.ndarray, int]:
    """Labels as int64 [N] and the number of classes (the largest label + 1 if not given), checked."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or not len(labels):
        raise LtatError(f"labels are {labels.dtype} of shape {labels.shape}; give a non-empty vector of integers")
    highest = int(labels.max())
    if highest >= MAX_CLASSES:
        raise LtatError(f"label {highest} is not the number of a class; number the classes from 0 without gaps")
    labels = labels.astype(np.int64)
    num_classes = highest + 1 if num_classes is None else num_classes
    check_labels(labels, num_classes)
    return labels, num_classes


def images_by_class(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """For each class the ascending positions of its images: ``num_classes`` int64 vectors.

    Args:
        labels: int64 [N], already checked to lie in [0, num_classes).
        num_classes: number of classes.
    """
    order, offsets = grouped(labels, num_classes)
    return np.split(order, offsets[1:-1])


def grouped(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """``group_by_class`` by the native helper, whose time grows with the images alone; the twin where it is missing."""
    host = native.host()
    group = group_by_class if host is None else host.group_by_class
    order, offsets = group(labels, num_classes)
    return order, offsets


def group_by_class(labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions sorted by class, and where each class starts; specification of the native helper.

    Returns:
        ``order`` int64 [N] and ``offsets`` int64 [num_classes + 1]: class c owns
        ``order[offsets[c]:offsets[c + 1]]``, ascending.
    """
    order = np.argsort(labels, kind="stable").astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=num_classes))]).astype(np.int64)
    return order, offsets
