"""What every loader shares: which images an epoch has, in which batches, with which augmentation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ltat.data.augment import Augment, Draws
from ltat.data.plans import IndexPlan
from ltat.data.split import Split, check_positions
from ltat.errors import LtatError
from ltat.ranks import ALONE, Ranks, Share

UNCHANGED = Augment(pad=0, flip=False)


class Shared(NamedTuple):
    """A whole batch, of which each rank has a share."""

    labels: Tensor  # int64 [B]
    indices: Tensor  # int64 [B], positions in the split
    share: Share  # the rows of this rank
    ranks: Ranks


class Batch(NamedTuple):
    """What training and evaluation see of the data; where several ranks share a batch, the rows of one of them."""

    images: Tensor  # float32 [B, ch, H, W] in [0, 1], channels_last
    labels: Tensor  # int64 [B]
    indices: Tensor  # int64 [B], positions in the split
    shared: Shared | None = None

    @property
    def all_labels(self) -> Tensor:
        """The labels of the whole batch, int64."""
        return self.labels if self.shared is None else self.shared.labels


@dataclass(frozen=True)
class Order:
    """The images that a loader serves in one epoch, on the host.

    Attributes:
        positions: int64 [n], positions in the split, batch after batch.
        draws: the augmentation of each.
        batch_size: images per batch; the last one may be smaller.

    Where several ranks share the batches, all of it is of the images of one rank.
    """

    positions: Tensor
    draws: Draws
    batch_size: int

    def batches(self) -> list[slice]:
        """The batches, as slices of the n images."""
        return [slice(k, k + self.batch_size) for k in range(0, len(self.positions), self.batch_size)]


class Loader(ABC):
    """Batches of a split, by an index plan.

    A batch depends on (plan, seed, epoch, place in the plan) alone: every loader, any batch size, any number of
    workers and any starting point give the same pixels for the same place, and a repeated image gets its own
    augmentation each time.

    Args:
        split: the images and labels.
        plan: which image stands at which place of an epoch.
        batch_size: images per batch of all ranks together, at least 1.
        augment: how images are altered, or None for the images as they are.
        seed: of the augmentation.
        device: where the batches lie.
        drop_last: leave out the last batch when it is smaller than the others.
        ranks: those that share each batch; this loader serves the images of one of them.
        on_progress: called with (images read, images in all) by a loader that reads the set before its first batch.

    Raises:
        LtatError: a batch size below 1, too large for a single batch with ``drop_last``, or one that leaves a rank
            without an image; an augmentation that does not suit the images.
    """

    why = ""  # which loader this is and why it was chosen, where it was

    def __init__(
        self,
        split: Split,
        plan: IndexPlan,
        *,
        batch_size: int,
        augment: Augment | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        drop_last: bool = False,
        ranks: Ranks = ALONE,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        if batch_size < 1:
            raise LtatError(f"batch size {batch_size} is below 1; give at least 1")
        self.augment = UNCHANGED if augment is None else augment
        self.augment.check_images(*split.images.shape[1:])
        self.split, self.plan = split, plan
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        self.device, self.on_progress, self.ranks = torch.device(device), on_progress, ranks
        self.own_batch_size = len(ranks.share(batch_size))
        self._drawn: tuple[int, np.ndarray] | None = None
        largest = plan.size(1)
        if drop_last and batch_size > largest:
            raise self._too_large(largest)
        self._require_images_for_every_rank()

    def steps(self, epoch: int) -> int:
        """Batches of an epoch."""
        n = self.plan.size(epoch)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def class_counts(self, epoch: int) -> np.ndarray:
        """Images of each class in an epoch, repeats included: int64 [C].

        Raises:
            LtatError: a plan that points outside the split.
        """
        labels = self.split.labels[self._positions(epoch)]
        return np.bincount(labels, minlength=self.split.num_classes)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from place ``start`` of its plan on.

        After k batches the place is k · batch_size; continuing there gives the other batches unchanged.

        Args:
            epoch: number of the epoch, 0 or more.
            start: place in the plan (in images), 0..plan.size(epoch).

        Raises:
            LtatError: a start outside the plan, or a plan that points outside the split.
        """
        batches = self._batches(self._order(epoch, start))
        return batches if self.ranks.size == 1 else self._shared(batches, epoch, start)

    def _shared(self, batches: Iterator[Batch], epoch: int, start: int) -> Iterator[Batch]:
        """The batches of this rank, each with the whole one."""
        positions = torch.from_numpy(self._positions(epoch)).to(self.device)
        labels = torch.from_numpy(self.split.labels).to(self.device)[positions]
        limits = self._limits(len(positions), start)
        for batch, (first, last) in zip(batches, limits, strict=True):
            share = self.ranks.share(last - first)
            yield batch._replace(shared=Shared(labels[first:last], positions[first:last], share, self.ranks))

    @abstractmethod
    def _batches(self, order: Order) -> Iterator[Batch]:
        """The batches of the order."""

    def _order(self, epoch: int, start: int) -> Order:
        positions = self._positions(epoch)
        n = len(positions)
        if not 0 <= start <= n:
            raise LtatError(f"start {start} is outside the epoch's plan; choose 0..{n}")
        if self.drop_last and n < self.batch_size:
            raise self._too_large(n)
        places = self._places(n, start)
        draws = self.augment.draw(n, self.seed, epoch)
        return Order(torch.from_numpy(positions)[places], draws.at(places), self.own_batch_size)

    def _limits(self, n: int, start: int) -> list[tuple[int, int]]:
        """First and last place (exclusive) of each batch."""
        limits = [(k, min(k + self.batch_size, n)) for k in range(start, n, self.batch_size)]
        return [(first, last) for first, last in limits if last - first == self.batch_size or not self.drop_last]

    def _places(self, n: int, start: int) -> Tensor:
        """The places of this rank's images, batch after batch: int64."""
        limits = self._limits(n, start)
        if self.ranks.size == 1 or not limits:
            return torch.arange(start, limits[-1][1] if limits else start)
        own = ((first, self.ranks.share(last - first)) for first, last in limits)
        return torch.cat([torch.arange(first + share.first, first + share.last) for first, share in own])

    def _require_images_for_every_rank(self) -> None:
        n = self.plan.size(1)
        smallest = min((n if self.drop_last else n % self.batch_size) or self.batch_size, self.batch_size)
        if smallest < self.ranks.size:
            raise LtatError(
                f"a batch of {smallest} of the {n} images leaves some of the {self.ranks.size} ranks without one; "
                "choose another batch size, fewer ranks, or train.drop_last=true"
            )

    def _too_large(self, images: int) -> LtatError:
        return LtatError(
            f"batch size {self.batch_size} is larger than the {images} images of an epoch; choose at most {images}"
        )

    def _positions(self, epoch: int) -> np.ndarray:
        """The plan's positions, kept until another epoch is asked for: its counts and its order both need them."""
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = epoch, check_positions(self.plan.epoch(epoch), len(self.split))
        return self._drawn[1]
