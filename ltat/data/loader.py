"""Batches from a split held in memory, by an index plan."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ltat.data.augment import Augment, Draws
from ltat.data.plans import IndexPlan
from ltat.data.split import Split, check_positions
from ltat.errors import LtatError


class Batch(NamedTuple):
    """What training and evaluation see of the data."""

    images: Tensor  # float32 [B, C, H, W] in [0, 1], channels_last
    labels: Tensor  # int64 [B]
    indices: Tensor  # int64 [B], positions in the split


class InMemoryLoader:
    """Batches of a split whose uint8 images stay on the device.

    A batch depends on (plan, seed, epoch, position) alone: any batch size and any starting point give the
    same pixels for the same position of the plan, and a repeated image gets its own augmentation each time.

    Args:
        split: the images and labels.
        plan: which image stands at which position of an epoch.
        batch_size: images per batch, at least 1.
        augment: crop and flip, or None for the images as they are.
        seed: of the augmentation.
        device: where the batches lie.
        drop_last: leave out the last batch when it is smaller than the others.

    Raises:
        LtatError: a batch size below 1, or above the plan's length with ``drop_last`` (no batch would be
            left); padding that does not suit the image size.
    """

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
    ) -> None:
        if batch_size < 1:
            raise LtatError(f"batch size {batch_size} is below 1; give at least 1")
        if drop_last and batch_size > len(plan):
            raise LtatError(
                f"batch size {batch_size} is larger than the {len(plan)} images of an epoch; choose at most {len(plan)}"
            )
        if augment is not None:
            augment.check_image_size(*split.images.shape[1:3])
        self.split, self.plan, self.augment = split, plan, augment
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        self.device = torch.device(device)
        self._images = torch.from_numpy(split.images).to(self.device)
        self._labels = torch.from_numpy(split.labels).to(self.device)
        # A tensor on the device: CUDA turns division by a Python number into a multiplication, which rounds
        # differently from the CPU.
        self._white = torch.tensor(255.0, device=self.device)

    def __len__(self) -> int:
        """Batches per epoch."""
        full, rest = divmod(len(self.plan), self.batch_size)
        return full + bool(rest and not self.drop_last)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from position ``start`` of its plan on.

        After k batches the position is k · batch_size; continuing there gives the other batches unchanged.

        Args:
            epoch: number of the epoch, 0 or more.
            start: position in the plan (in images), 0..len(plan).

        Raises:
            LtatError: a start outside the plan, or a plan that points outside the split.
        """
        positions = check_positions(self.plan.epoch(epoch), len(self.split))
        if not 0 <= start <= len(positions):
            raise LtatError(f"start {start} is outside the epoch's plan; choose 0..{len(positions)}")
        return self._batches(torch.from_numpy(positions), epoch, start)

    def _batches(self, positions: Tensor, epoch: int, start: int) -> Iterator[Batch]:
        positions = positions.to(self.device)
        draws = self._draws(len(positions), epoch)
        for begin in range(start, len(positions), self.batch_size):
            here = slice(begin, begin + self.batch_size)
            chosen = positions[here]
            if self.drop_last and len(chosen) < self.batch_size:
                return
            pixels = self._pixels(chosen, None if draws is None else draws.at(here))
            yield Batch(self._scale(pixels), self._labels[chosen], chosen)

    def _draws(self, n: int, epoch: int) -> Draws | None:
        if self.augment is None:
            return None
        return self.augment.draw(n, self.seed, epoch).to(self.device)

    def _pixels(self, positions: Tensor, draws: Draws | None) -> Tensor:
        if self.augment is None or draws is None:
            return self._images[positions]
        return self.augment.gather(self._images, positions, draws)

    def _scale(self, pixels: Tensor) -> Tensor:
        return (pixels.float() / self._white).permute(0, 3, 1, 2)
