"""Index plans: which image stands at which position of an epoch, as plain data."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from ltat.data.balanced import balanced_indices, balanced_sizes
from ltat.data.grouping import resolve_labels
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
