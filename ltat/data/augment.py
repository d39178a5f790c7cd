"""Augmentation by position: the same pixels for any loader, batch size, worker count and starting point."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltat.data.policies import Policy, altered
from ltat.errors import LtatError
from ltat.ops.gather_augment import PADDINGS, gather_augment
from ltat.seeding import numpy_generator

_MOST = 4096  # pixels; a slip of the pen must not overflow


@dataclass(frozen=True)
class Draws:
    """One epoch's random choices, by place in the plan."""

    shift: Tensor  # int64 [n, 2], rows and columns by which the crop lies off the image, -pad..pad
    mirrored: Tensor  # bool [n]
    policy_seeds: Tensor  # int64 [n], on the CPU; [0] without a policy
    hole: Tensor  # float64 [n, 2], centre of the square cut out, as a share of height and width; [0, 2] without

    def at(self, places: Tensor | slice) -> "Draws":
        """The choices of these places."""
        seeds = self.policy_seeds[places] if len(self.policy_seeds) else self.policy_seeds
        hole = self.hole[places] if len(self.hole) else self.hole
        return Draws(self.shift[places], self.mirrored[places], seeds, hole)

    def to(self, device: torch.device) -> "Draws":
        """The same choices on another device."""
        return Draws(self.shift.to(device), self.mirrored.to(device), self.policy_seeds, self.hole.to(device))


@dataclass(frozen=True)
class Augment:
    """A policy, then a random crop of the padded image with a flip of probability 1/2, then Cutout.

    Attributes:
        pad: pixels added on each side, 0 or more.
        flip: whether to mirror half of the images.
        pad_mode: "zero", or "reflect" (without repeating the border pixel).
        policy: alters each uint8 image before the crop, or None; see ``ltat.data.policies``.
        cutout: side of the square set to black after the crop, in pixels; 0 cuts nothing. Its centre is any pixel,
            so that it may reach over the border (DeVries & Taylor, 2017); as in their code an odd side is one less.
    """

    pad: int
    flip: bool
    pad_mode: str = "zero"
    policy: Policy | None = None
    cutout: int = 0

    def __post_init__(self) -> None:
        for name, pixels in (("padding", self.pad), ("cutout", self.cutout)):
            if not 0 <= pixels <= _MOST:
                raise LtatError(f"{name} of {pixels} pixels is outside 0..{_MOST}; give a part of the image's size")
        if self.pad_mode not in PADDINGS:
            raise LtatError(f"unknown padding {self.pad_mode!r}; choose one of {', '.join(PADDINGS)}")

    def check_images(self, height: int, width: int, channels: int) -> None:
        """Refuse a reflecting pad larger than the image, and a policy on images that are neither grey nor RGB."""
        if self.pad_mode == "reflect" and self.pad >= min(height, width):
            raise LtatError(
                f"reflecting {self.pad} pixels needs images larger than {height}x{width}; "
                "choose a smaller pad or zero padding"
            )
        if self.policy is not None and channels not in (1, 3):
            raise LtatError(f"a policy alters grey or colour images and these have {channels} channels; use none")

    def draw(self, n: int, seed: int, epoch: int) -> Draws:
        """The choices for all n places of an epoch's plan, from (seed, epoch, place) alone.

        Each kind has its own stream, so that neither the plan's length nor another switch moves it.
        """

        def stream(name: str) -> np.random.Generator:
            return numpy_generator(seed, f"augment-{name}", epoch)

        shift = stream("crop").integers(0, 2 * self.pad + 1, size=(n, 2)) - self.pad
        mirrored = (stream("flip").random(n) < 0.5) & self.flip
        seeds = stream("policy").integers(0, 2**63 - 1, size=0 if self.policy is None else n)
        hole = stream("cutout").random((n if self.cutout else 0, 2))
        return Draws(*(torch.from_numpy(values) for values in (shift, mirrored, seeds, hole)))

    def apply(self, images: Tensor, positions: Tensor | None, draws: Draws) -> Tensor:
        """The augmented images at these positions.

        Args:
            images: uint8 [N, H, W, ch], contiguous.
            positions: int64 [B], on the device of ``images``; all of them if None.
            draws: the choices of these B places, on the same device.

        Returns:
            float32 [B, ch, H, W] in [0, 1], channels_last.
        """
        if self.policy is None:
            return self.crop(images, positions, draws)
        chosen = images if positions is None else images[positions]
        return self.crop(self.alter(chosen, draws), None, draws)

    def alter(self, images: Tensor, draws: Draws) -> Tensor:
        """The images after the policy alone: uint8 [B, H, W, ch], as given."""
        return images if self.policy is None else altered(images, self.policy, draws.policy_seeds)

    def crop(self, images: Tensor, positions: Tensor | None, draws: Draws) -> Tensor:
        """All of ``apply`` but the policy."""
        floats = gather_augment(images, positions, shift=draws.shift, mirrored=draws.mirrored, pad_mode=self.pad_mode)
        return self.cut(floats, draws)

    def cut(self, images: Tensor, draws: Draws) -> Tensor:
        """The images, float32 [B, ch, H, W], with their squares set to 0 in place."""
        if not self.cutout:
            return images
        near = [
            _near(centre, size, self.cutout // 2) for centre, size in zip(draws.hole.T, images.shape[2:], strict=True)
        ]
        return images.masked_fill_((near[0][:, :, None] & near[1][:, None, :])[:, None], 0.0)


def _near(share: Tensor, size: int, reach: int) -> Tensor:
    """Which of ``size`` pixels lie less than ``reach`` from the centre (one side takes the centre): bool [B, size]."""
    offset = torch.arange(size, device=share.device) - (share * size).long()[:, None]
    return (offset >= -reach) & (offset < reach)
