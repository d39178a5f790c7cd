"""Accuracies in percent, computed from the mask of correctly classified images."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import numpy as np

from ltat.evaluation.groups import class_groups


def accuracy(correct: np.ndarray) -> float | None:
    """The share of true values of ``correct`` (bool [N]) in percent; None without images."""
    return 100.0 * float(correct.mean()) if len(correct) else None


def class_accuracies(correct: np.ndarray, labels: np.ndarray, num_classes: int) -> list[float | None]:
    """The accuracy of each class in percent; None for a class without images.

    Args:
        correct: bool [N].
        labels: int64 [N] in [0, num_classes).
        num_classes: C.
    """
    counts = np.bincount(labels, minlength=num_classes).tolist()
    hits = np.bincount(labels[correct], minlength=num_classes).tolist()
    return [100.0 * (hit / count) if count else None for hit, count in zip(hits, counts, strict=True)]


def balanced_accuracy(per_class: Sequence[float | None]) -> float | None:
    """The mean accuracy of the classes that have images (BA, and BR on adversarial images; TAET, 2025)."""
    present = [value for value in per_class if value is not None]
    return fmean(present) if present else None


def summarise(
    correct: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    train_counts: Sequence[int] | np.ndarray | None = None,
) -> dict[str, Any]:
    """Overall, balanced, tail, many, medium, few and per-class accuracy, each with its number of images.

    A group's accuracy pools the images of its classes. It is None where the group has no image, or where the
    training counts, which define the groups, are unknown.

    Args:
        correct: bool [N].
        labels: int64 [N] in [0, num_classes).
        num_classes: C.
        train_counts: training images per class [C], or None.

    Returns:
        Accuracies in percent by name, and under ``"n"`` the numbers of images under the same names.
    """
    per_class = class_accuracies(correct, labels, num_classes)
    members = {
        group: None if classes is None else classes[labels]
        for group, classes in class_groups(num_classes, train_counts).items()
    }
    return {
        "overall": accuracy(correct),
        "balanced": balanced_accuracy(per_class),
        **{group: None if own is None else accuracy(correct[own]) for group, own in members.items()},
        "per_class": per_class,
        "n": {
            "overall": len(labels),
            **{group: None if own is None else int(own.sum()) for group, own in members.items()},
            "per_class": np.bincount(labels, minlength=num_classes).tolist(),
        },
    }
