"""The groups of classes by their number of training images: tail, many, medium and few."""

import math
from collections.abc import Sequence

import numpy as np

from ltat.errors import LtatError

GROUPS = ("tail", "many", "medium", "few")
TAIL_SHARE = 0.1
MANY_ABOVE = 100
FEW_BELOW = 20


def class_groups(num_classes: int, train_counts: Sequence[int] | np.ndarray | None) -> dict[str, np.ndarray | None]:
    """The classes of each group as a mask, bool [C]; None for every group if the counts are unknown.

    tail: the ceil(C / 10) classes with the fewest training images (the later label first among equal counts), which
    is the last class of CIFAR-10-LT and the last ten of CIFAR-100-LT. many: more than 100 training images; medium: 20
    to 100; few: fewer than 20.

    Raises:
        LtatError: counts of another number of classes, or negative.
    """
    if train_counts is None:
        return dict.fromkeys(GROUPS)
    counts = _numbers(train_counts)
    if counts.shape != (num_classes,) or not (counts >= 0).all():
        raise LtatError(
            f"train_counts of shape {counts.shape} for {num_classes} classes; give one count of images per class"
        )
    tail = np.zeros(num_classes, dtype=bool)
    rarest_first = np.lexsort((-np.arange(num_classes), counts))
    tail[rarest_first[: math.ceil(TAIL_SHARE * num_classes)]] = True
    return {
        "tail": tail,
        "many": counts > MANY_ABOVE,
        "medium": (counts >= FEW_BELOW) & (counts <= MANY_ABOVE),
        "few": counts < FEW_BELOW,
    }


def _numbers(train_counts: Sequence[int] | np.ndarray) -> np.ndarray:
    try:
        return np.asarray(train_counts, dtype=np.float64)
    except (TypeError, ValueError):
        raise LtatError(f"train_counts are {train_counts!r}; give one count of images per class") from None
