"""Pad-crop and horizontal flip, the same pixels for any batch size and any starting point."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ltat.errors import LtatError
from ltat.seeding import numpy_generator


@dataclass(frozen=True)
class Draws:
    """One epoch's random choices, by position in the plan."""

    top: Tensor  # int64 [n], row of the padded image where the crop starts, 0..2 * pad
    left: Tensor  # int64 [n], column likewise
    mirrored: Tensor  # bool [n]

    def at(self, positions: slice) -> "Draws":
        """The choices of these positions."""
        return Draws(self.top[positions], self.left[positions], self.mirrored[positions])

    def to(self, device: torch.device) -> "Draws":
        """The same choices on another device."""
        return Draws(self.top.to(device), self.left.to(device), self.mirrored.to(device))


class Axis(NamedTuple):
    """Where the pixels of one output row or column come from."""

    source: Tensor  # int64 [B, size], clamped into the image
    inside: Tensor  # bool [B, size], False where the source lies in the zero padding


def _zero(position: Tensor, size: int) -> Axis:
    inside = (position >= 0) & (position < size)
    return Axis(position.clamp(0, size - 1), inside)


def _reflect(position: Tensor, size: int) -> Axis:
    last = size - 1
    return Axis(last - (last - position.abs()).abs(), torch.ones_like(position, dtype=torch.bool))


PADDINGS: dict[str, Callable[[Tensor, int], Axis]] = {"zero": _zero, "reflect": _reflect}


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
        """The choices for all n positions of an epoch's plan, from (seed, epoch, position) alone.

        Crops and flips have a stream each, so that neither the plan's length nor the other switch moves them.
        """
        offsets = numpy_generator(seed, "augment-crop", epoch).integers(0, 2 * self.pad + 1, size=(n, 2))
        mirrored = numpy_generator(seed, "augment-flip", epoch).random(n) < 0.5
        top, left = torch.from_numpy(offsets.T.copy())
        return Draws(top, left, torch.from_numpy(mirrored & self.flip))

    def gather(self, images: Tensor, positions: Tensor, draws: Draws) -> Tensor:
        """The augmented images at these positions.

        Args:
            images: uint8 [N, H, W, C], the whole split.
            positions: int64 [B], on the device of ``images``.
            draws: the choices of these B positions in the plan, on the same device.

        Returns:
            uint8 [B, H, W, C], C-contiguous. Every output pixel is read straight from its source pixel, so
            the padded images are never built.
        """
        height, width = images.shape[1:3]
        pad_axis = PADDINGS[self.pad_mode]
        device = images.device
        rows = pad_axis(torch.arange(height, device=device) + draws.top[:, None] - self.pad, height)
        ahead = torch.arange(width, device=device)
        across = torch.where(draws.mirrored[:, None], ahead.flip(0), ahead)
        columns = pad_axis(across + draws.left[:, None] - self.pad, width)
        found = images[positions[:, None, None], rows.source[:, :, None], columns.source[:, None, :]]
        inside = rows.inside[:, :, None] & columns.inside[:, None, :]
        return found * inside[..., None]
