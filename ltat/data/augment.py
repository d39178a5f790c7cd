"""Augmentation by position: the same pixels for any loader, batch size, worker count and starting point."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ltat.errors import LtatError
from ltat.ops.gather_augment import PADDINGS, gather_augment
from ltat.seeding import numpy_generator


@dataclass(frozen=True)
class Draws:
    """One epoch's random choices, by place in the plan."""

    shift: Tensor  # int64 [n, 2], rows and columns by which the crop lies off the image, -pad..pad
    mirrored: Tensor  # bool [n]

    def at(self, places: Tensor | slice) -> "Draws":
        """The choices of these places."""
        return Draws(self.shift[places], self.mirrored[places])

    def to(self, device: torch.device) -> "Draws":
        """The same choices on another device."""
        return Draws(self.shift.to(device), self.mirrored.to(device))


@dataclass(frozen=True)
class Augment:
    """Random crop of the padded image back to its size, then a horizontal flip with probability 1/2.

    Attributes:
        pad: pixels added on each side, 0 or more.
        flip: whether to mirror half of the images.
        pad_mode: "zero", or "reflect" (without repeating the border pixel).
    """

    pad: int
    flip: bool
    pad_mode: str = "zero"

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise LtatError(f"padding of {self.pad} pixels is negative; give 0 or more")
        if self.pad_mode not in PADDINGS:
            raise LtatError(f"unknown padding {self.pad_mode!r}; choose one of {', '.join(PADDINGS)}")

    def check_image_size(self, height: int, width: int) -> None:
        """Refuse a reflecting pad that reaches beyond the image."""
        if self.pad_mode == "reflect" and self.pad >= min(height, width):
            raise LtatError(
                f"reflecting {self.pad} pixels needs images larger than {height}x{width}; "
                "choose a smaller pad or zero padding"
            )

    def draw(self, n: int, seed: int, epoch: int) -> Draws:
        """The choices for all n places of an epoch's plan, from (seed, epoch, place) alone.

        Crops and flips have a stream each, so that neither the plan's length nor the other switch moves them.
        """
        offsets = numpy_generator(seed, "augment-crop", epoch).integers(0, 2 * self.pad + 1, size=(n, 2))
        mirrored = numpy_generator(seed, "augment-flip", epoch).random(n) < 0.5
        return Draws(torch.from_numpy(offsets - self.pad), torch.from_numpy(mirrored & self.flip))

    def apply(self, images: Tensor, positions: Tensor | None, draws: Draws) -> Tensor:
        """The augmented images at these positions, in one pass.

        Args:
            images: uint8 [N, H, W, C], contiguous.
            positions: int64 [B], on the device of ``images``; all of them if None.
            draws: the choices of these B places, on the same device.

        Returns:
            float32 [B, C, H, W] in [0, 1], channels_last.
        """
        return gather_augment(images, positions, shift=draws.shift, mirrored=draws.mirrored, pad_mode=self.pad_mode)
