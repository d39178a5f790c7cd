"""Deterministic parts of a set: a validation slice for honest selection, and small evaluation samples."""

import numpy as np

from ltat.data.grouping import grouped, images_by_class, resolve_labels
from ltat.errors import LtatError
from ltat.seeding import numpy_generator


def holdout_indices(
    labels: np.ndarray, fraction: float, seed: int, num_classes: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split positions into training and validation, in proportion to the classes.

    Class c gives round(fraction · n_c) images to validation, but at least 1 and at most n_c - 1.

    Returns:
        ``(train, validation)``, int64, each ascending.

    Raises:
        LtatError: a fraction outside (0, 1), or a class with fewer than two images.
    """
    labels, num_classes = resolve_labels(labels, num_classes)
    if not 0 < fraction < 1:
        raise LtatError(f"held-out fraction {fraction} is not between 0 and 1; 0.1 holds out a tenth")
    held_out = np.zeros(len(labels), dtype=bool)
    for c, own in enumerate(images_by_class(labels, num_classes)):
        held_out[_holdout_class(own, fraction, numpy_generator(seed, "holdout", c), c)] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _holdout_class(own: np.ndarray, fraction: float, generator: np.random.Generator, label: int) -> np.ndarray:
    if len(own) < 2:
        raise LtatError(
            f"class {label} has {len(own)} training image(s), too few to hold one out; "
            "lower the imbalance ratio, or train without a selection: select.set=none"
        )
    count = min(max(round(fraction * len(own)), 1), len(own) - 1)
    return generator.permutation(own)[:count]


def stratified_subset(labels: np.ndarray, n: int, num_classes: int | None = None) -> np.ndarray:
    """The positions of n images with classes as even as they allow, without randomness.

    Takes the first image of every class, then the second of every class, and so on. Where the last round is not
    whole, its classes are spread evenly from the last class on, so that a small sample has tail classes too.

    Returns:
        int64 [n], ascending.

    Raises:
        LtatError: n below 1 or above the number of images.
    """
    labels, num_classes = resolve_labels(labels, num_classes)
    if not 1 <= n <= len(labels):
        raise LtatError(f"{n} examples were asked of {len(labels)} images; choose 1..{len(labels)}")
    by_class, offsets = grouped(labels, num_classes)
    sizes = np.diff(offsets)
    turn = np.arange(len(labels)) - np.repeat(offsets[:-1], sizes)  # of by_class: the first of its class, the second …
    by_turn, starts = grouped(turn, int(sizes.max()))
    order = by_class[by_turn]
    next_turn = np.searchsorted(starts, n)  # of the turns before it, all but the last are whole
    first, end = starts[next_turn - 1 : next_turn + 1]
    last, wanted = order[first:end], n - first
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[order[:first]] = True
    chosen[last[len(last) - 1 - np.arange(wanted) * len(last) // wanted]] = True
    return np.flatnonzero(chosen)
