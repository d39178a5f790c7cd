"""Index plans: which image stands at which position of an epoch, as plain data."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from ltat.data.balanced import balanced_indices, balanced_sizes, draw_class
from ltat.data.grouping import images_by_class, resolve_labels
from ltat.data.npz import load_positions
from ltat.errors import LtatError
from ltat.seeding import numpy_generator


class IndexPlan(Protocol):
    """What a loader asks of a plan; epochs may differ in length."""

    def epoch(self, epoch: int) -> np.ndarray:
        """Positions in the split, int64 [size(epoch)], in the order of this epoch; repeats are allowed."""
        ...

    def size(self, epoch: int) -> int:
        """How many images the epoch has."""
        ...


@dataclass(frozen=True)
class ShufflePlan:
    """Every image of a split of ``n`` once, in a new order every epoch."""

    n: int
    seed: int

    def epoch(self, epoch: int) -> np.ndarray:
        """A permutation of 0..n-1, int64 [n], from (seed, epoch) alone."""
        return numpy_generator(self.seed, "shuffle", epoch).permutation(self.n)

    def size(self, epoch: int) -> int:
        """n, whatever the epoch."""
        return self.n


@dataclass(frozen=True, eq=False)
class FixedPlan:
    """The same positions in the same order every epoch: evaluation, or a plan made elsewhere."""

    positions: np.ndarray

    def epoch(self, epoch: int) -> np.ndarray:
        """The positions, int64 [n], whatever the epoch."""
        return np.asarray(self.positions, dtype=np.int64)

    def size(self, epoch: int) -> int:
        """n, whatever the epoch."""
        return len(self.positions)


@dataclass(frozen=True, eq=False)
class BalancedPlan:
    """D_B, shuffled anew every epoch (see ``balanced_indices``).

    Attributes:
        labels: integers [N] of the split.
        num_classes: C.
        gamma: γ or "ir/2".
        db_seed: seed of the draw of D_B.
        seed: seed of the order.
        resample: "once" (one D_B for all epochs) or "per_epoch".
        remainder: as in ``balanced_indices``.
        partial: as in ``balanced_indices``.
    """

    labels: np.ndarray
    num_classes: int
    gamma: float | str
    db_seed: int
    seed: int
    resample: str = "once"
    remainder: str = "no_replace"
    partial: float = 1.0

    def __post_init__(self) -> None:
        if self.resample not in ("once", "per_epoch"):
            raise LtatError(f"unknown resampling {self.resample!r}; choose one of once, per_epoch")

    def epoch(self, epoch: int) -> np.ndarray:
        """The epoch's D_B in the epoch's order, int64 [C · m], from (db_seed, seed, epoch) alone."""
        drawn = self.first_draw if self.resample == "once" else self._draw(epoch)
        return drawn[numpy_generator(self.seed, "shuffle", epoch).permutation(len(drawn))]

    @cached_property
    def first_draw(self) -> np.ndarray:
        """D_B as drawn once, class after class, int64 [C · m]: what a run records and hashes."""
        return self._draw(0)

    def _draw(self, draw: int) -> np.ndarray:
        return balanced_indices(
            self.labels,
            self.gamma,
            self.db_seed,
            num_classes=self.num_classes,
            remainder=self.remainder,
            partial=self.partial,
            draw=draw,
        )

    @cached_property
    def _length(self) -> int:
        labels, num_classes = resolve_labels(self.labels, self.num_classes)
        counts = np.bincount(labels, minlength=num_classes)
        return int(balanced_sizes(counts, self.gamma, self.partial).sum())

    def size(self, epoch: int) -> int:
        """C · m, whatever the epoch."""
        return self._length


@dataclass(frozen=True, eq=False)
class ClassSamplingPlan:
    """As many images as the split has, class c in proportion to n_c^q (Kang et al., ICLR 2020).

    The counts are exact, not drawn: the shares are rounded to whole images that sum to N. Within a class every
    image appears equally often, give or take once, and every epoch draws anew.

    Attributes:
        labels: integers [N] of the split.
        num_classes: C; every class has an image.
        power: q; 1 is natural, 1/2 square-root and 0 class-balanced sampling.
        seed: of draw and order.
    """

    labels: np.ndarray
    num_classes: int
    power: float
    seed: int

    def epoch(self, epoch: int) -> np.ndarray:
        """The epoch's positions, int64 [N], from (seed, epoch) alone."""
        return _sampled(self._by_class, self.shares(), len(self.labels), self.seed, epoch)

    def size(self, epoch: int) -> int:
        """N, whatever the epoch."""
        return len(self.labels)

    def shares(self) -> np.ndarray:
        """Share of each class in an epoch, float64 [C], summing to 1."""
        return power_shares(_sizes(self._by_class), self.power)

    @cached_property
    def _by_class(self) -> list[np.ndarray]:
        return images_by_class(*resolve_labels(self.labels, self.num_classes))


@dataclass(frozen=True, eq=False)
class ProgressivePlan:
    """From natural to class-balanced sampling over the epochs (Kang et al., ICLR 2020).

    Epoch e of E takes (1 - t) of the natural and t of the balanced shares, t = (e - 1) / E.

    Attributes:
        labels: integers [N] of the split.
        num_classes: C; every class has an image.
        epochs: E.
        seed: of draw and order.
    """

    labels: np.ndarray
    num_classes: int
    epochs: int
    seed: int

    def epoch(self, epoch: int) -> np.ndarray:
        """The epoch's positions, int64 [N], from (seed, epoch) alone."""
        return _sampled(self._by_class, self.shares(epoch), len(self.labels), self.seed, epoch)

    def size(self, epoch: int) -> int:
        """N, whatever the epoch."""
        return len(self.labels)

    def shares(self, epoch: int) -> np.ndarray:
        """Share of each class in an epoch, float64 [C], summing to 1."""
        t = min(max((epoch - 1) / self.epochs, 0.0), 1.0)
        sizes = _sizes(self._by_class)
        return (1 - t) * power_shares(sizes, 1.0) + t * power_shares(sizes, 0.0)

    @cached_property
    def _by_class(self) -> list[np.ndarray]:
        return images_by_class(*resolve_labels(self.labels, self.num_classes))


def plan_from_file(path: Path, n: int) -> FixedPlan:
    """The plan of an .npy file, or an .npz file with one array: positions in a split of ``n`` images, in order.

    Raises:
        LtatError: the file cannot be read, holds no position, or points outside the split.
    """
    positions = load_positions(path, n)
    if not len(positions):
        raise LtatError(f"{path} holds no position; a plan needs at least one image")
    return FixedPlan(positions)


def power_shares(counts: np.ndarray, power: float) -> np.ndarray:
    """p_c ∝ n_c^q, float64 [C], summing to 1 (Kang et al., ICLR 2020).

    Raises:
        LtatError: a class without images.
    """
    if not counts.all():
        raise LtatError(f"class {int(np.argmin(counts))} has no image; every class needs at least one")
    weights = counts.astype(np.float64) ** power
    return weights / weights.sum()


def exact_quotas(shares: np.ndarray, n: int) -> np.ndarray:
    """Whole images per class, int64 [C], that sum to ``n``: the largest remainders are rounded up."""
    wanted = shares * n
    quotas = np.floor(wanted).astype(np.int64)
    order = np.argsort(-(wanted - quotas), kind="stable")
    quotas[order[: n - quotas.sum()]] += 1
    return quotas


def _sizes(by_class: list[np.ndarray]) -> np.ndarray:
    return np.array([len(own) for own in by_class])


def _sampled(by_class: list[np.ndarray], shares: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    drawn = [
        draw_class(numpy_generator(seed, "sampling", epoch, c), own, int(quota))
        for c, (own, quota) in enumerate(zip(by_class, exact_quotas(shares, n), strict=True))
    ]
    return numpy_generator(seed, "shuffle", epoch).permutation(np.concatenate(drawn))
