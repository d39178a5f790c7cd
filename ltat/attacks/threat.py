"""The threat model: the set of images an adversary may reach from x, and how to move inside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltat.arguments import as_number, shown
from ltat.errors import LtatError
from ltat.ops import pgd_step
from ltat.units import check_length

NORMS = ("linf", "l2")


@dataclass(frozen=True)
class ThreatModel:
    """All x' with ‖x' − x‖ ≤ ε inside the box.

    Args:
        norm: ``"linf"`` or ``"l2"`` (over all pixels and channels of one image).
        eps: radius ε ≥ 0 in units of the image, one number or a tensor [B] with one radius per image. Numbers of
            NumPy and tensors without shape become a ``float``.
        box: smallest and largest legal pixel value.

    Raises:
        LtatError: unknown norm; ε no number, negative, not finite, of more than one dimension, or in ℓ∞ wider than
            the box; no box, or an empty one.
    """

    norm: str = "linf"
    eps: float | Tensor = 8 / 255
    box: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise LtatError(f"unknown norm {shown(self.norm)}; use one of {', '.join(NORMS)}")
        object.__setattr__(self, "box", _as_box(self.box))
        if not (isinstance(self.eps, Tensor) and self.eps.dim()):
            object.__setattr__(self, "eps", as_number("eps", self.eps, "give a number such as 8/255, or a tensor [B]"))
        # A radius on the GPU is checked by `validate`, not here: reading it would stall every training step.
        if not isinstance(self.eps, Tensor) or self.eps.device.type == "cpu":
            self._check_radius()

    def validate(self, batch_size: int) -> None:
        """Checks the radii themselves (one device synchronisation) and that they fit the batch."""
        self._check_radius()
        if isinstance(self.eps, Tensor) and len(self.eps) != batch_size:
            raise LtatError(f"eps holds {len(self.eps)} radii for {batch_size} images; give one per image")

    def _check_radius(self) -> None:
        if isinstance(self.eps, Tensor) and self.eps.dim() != 1:
            raise LtatError(f"eps has shape {tuple(self.eps.shape)}; give one number or a tensor [B]")
        values = torch.as_tensor(self.eps, dtype=torch.float64).reshape(-1)
        bad = values[~(torch.isfinite(values) & (values >= 0))]
        if bad.numel():
            raise LtatError(f"eps is {bad[0].item()}; a radius must be finite and not negative, such as 8/255")
        if values.numel():
            check_length("eps", float(values.max()), self.norm, self.box)

    def radius(self, x: Tensor) -> float | Tensor:
        """ε as a number, or as a tensor [B, 1, …] that broadcasts against ``x``."""
        return per_image(self.eps, x)

    def step(
        self, x_adv: Tensor, grad: Tensor, x: Tensor, step_size: float | Tensor, *, inplace: bool = False
    ) -> Tensor:
        """One ascent step along ``grad`` (its sign for ℓ∞, its direction for ℓ2), back into ball and box."""
        return pgd_step(x_adv, grad, x, eps=self.eps, step=step_size, norm=self.norm, box=self.box, inplace=inplace)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point of ball and box that a step of length zero from ``x_adv`` reaches."""
        return self.step(x_adv, torch.zeros_like(x_adv), x, 0.0)

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Whether each ``x_adv`` [B, …] is legal: in the box exactly, in the ball up to rounding; bool [B].

        x + ε is itself rounded when stored as an fp32 pixel, so ℓ∞ allows one ulp at the largest legal pixel
        value (2**-23 ≈ 1.2e-7 for the box [0, 1]) and ℓ2 that much for every pixel. NaN is never legal.
        """
        low, high = self.box
        delta = (x_adv.double() - x.double()).flatten(1)
        ulp = torch.finfo(torch.float32).eps * max(abs(low), abs(high))
        if self.norm == "linf":
            distance, slack = delta.abs().amax(1), ulp
        else:
            distance, slack = delta.norm(dim=1), ulp * math.sqrt(delta.shape[1])
        eps = self.eps.to(delta) if isinstance(self.eps, Tensor) else self.eps
        flat = x_adv.flatten(1)
        in_box = ((flat >= low) & (flat <= high)).all(1)
        return in_box & (distance <= eps + slack)


def per_image(value: float | Tensor, x: Tensor) -> float | Tensor:
    """``value`` as a number, or its [B] entries shaped [B, 1, …] to broadcast against ``x`` [B, …]."""
    if isinstance(value, Tensor):
        return value.to(x).reshape(-1, *([1] * (x.dim() - 1)))
    return value


def _as_box(box: object) -> tuple[float, float]:
    advice = "give (lowest, highest) pixel value"
    if not isinstance(box, Sequence | np.ndarray | Tensor) or isinstance(box, str) or len(box) != 2:
        raise LtatError(f"box is {shown(box)}; {advice}")
    low, high = (as_number("a bound of the box", bound, advice) for bound in box)
    if not low < high:
        raise LtatError(f"the box {(low, high)} is empty; {advice}")
    return low, high


LINF_8 = ThreatModel()
"""ℓ∞ with ε = 8/255 in [0, 1], the field's usual one."""
