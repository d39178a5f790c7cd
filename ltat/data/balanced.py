"""The balanced sub-dataset D_B of the self-teacher (LTAT, Cho et al., ICLR 2025, stage 1)."""

import math
from collections.abc import Callable

import numpy as np

from ltat.data.grouping import images_by_class, resolve_labels
from ltat.errors import LtatError
from ltat.seeding import numpy_generator

MAX_CLASS_SIZE = 10_000_000  # a wild gamma must not ask for more memory than there is

# How the m mod n_c images beyond whole copies of a class are drawn from its n_c images.
REMAINDERS: dict[str, Callable[[np.random.Generator, np.ndarray, int], np.ndarray]] = {
    "no_replace": lambda generator, own, count: generator.permutation(own)[:count],
    "replace": lambda generator, own, count: generator.choice(own, count, replace=True),
}


def balanced_indices(
    labels: np.ndarray,
    gamma: float | str = "ir/2",
    seed: int = 0,
    *,
    num_classes: int | None = None,
    remainder: str = "no_replace",
    partial: float = 1.0,
    draw: int = 0,
) -> np.ndarray:
    """Positions of D_B: m = floor(γ · n_min) images of every class, repeats where a class has fewer.

    A class with more than m images gives m of them without replacement; a smaller one gives every image
    floor(m / n_c) times and m mod n_c of them once more.

    Args:
        labels: integers [N]; every class needs an image.
        gamma: γ > 0, or "ir/2" (the paper's choice, which makes m = floor(n_max / 2)).
        seed: of the draw.
        num_classes: C; the largest label + 1 if None.
        remainder: "no_replace" or "replace": how the m mod n_c additional images are drawn.
        partial: how far to go from the natural counts (0) to D_B (1).
        draw: number of the draw, for a D_B redrawn every epoch.

    Returns:
        int64 [Σ m_c], class after class.

    Raises:
        LtatError: an empty class, or an argument out of range.
    """
    labels, num_classes = resolve_labels(labels, num_classes)
    if remainder not in REMAINDERS:
        raise LtatError(f"unknown remainder {remainder!r}; choose one of {', '.join(REMAINDERS)}")
    by_class = images_by_class(labels, num_classes)
    sizes = balanced_sizes(np.array([len(own) for own in by_class]), gamma, partial)
    generators = (numpy_generator(seed, "balanced", draw, c) for c in range(num_classes))
    drawn = [
        draw_class(generator, own, int(size), remainder)
        for generator, own, size in zip(generators, by_class, sizes, strict=True)
    ]
    return np.concatenate(drawn)


def balanced_sizes(counts: np.ndarray, gamma: float | str = "ir/2", partial: float = 1.0) -> np.ndarray:
    """Images per class of D_B, int64 [C]: round((1 - partial) · n_c + partial · m), at least 1.

    Args:
        counts: n_c, integers [C].
        gamma: as in ``balanced_indices``.
        partial: as in ``balanced_indices``.
    """
    counts = np.asarray(counts)
    if not counts.all():
        raise LtatError(f"class {int(np.argmin(counts))} has no image; every class needs at least one")
    if not 0 <= partial <= 1:
        raise LtatError(f"partial balance {partial} is outside 0..1; 0 keeps the counts, 1 balances fully")
    size = _balanced_size(int(counts.min()), int(counts.max()), gamma)
    return np.maximum(1, np.rint((1 - partial) * counts + partial * size)).astype(np.int64)


def _balanced_size(n_min: int, n_max: int, gamma: float | str) -> int:
    if gamma == "ir/2":
        return max(1, n_max // 2)
    if isinstance(gamma, str) or not (math.isfinite(gamma) and gamma > 0):
        raise LtatError(f"gamma {gamma!r} is neither 'ir/2' nor a finite number above 0; give one of these")
    if gamma * n_min > MAX_CLASS_SIZE:
        raise LtatError(f"gamma {gamma:g} asks for {gamma * n_min:g} images of every class; choose a smaller one")
    return max(1, math.floor(gamma * n_min + 1e-9))  # 1e-9: a γ given as IR/2 must not lose an image to rounding


def draw_class(generator: np.random.Generator, own: np.ndarray, size: int, remainder: str = "no_replace") -> np.ndarray:
    """``size`` of a class's positions ``own`` [n], each floor(size / n) times and the rest drawn by ``remainder``."""
    copies, rest = divmod(size, len(own))
    if copies == 0:
        return generator.permutation(own)[:size]
    return np.concatenate([np.tile(own, copies), REMAINDERS[remainder](generator, own, rest)])
