"""IGDM's term (Lee, Cho, Kim; ICLR 2025; arXiv 2312.03286): match the teacher's input gradients by finite differences.

A robust network is nearly linear around x (eq. 2), so f(x+delta) - f(x-delta) is about 2 J(x) delta. The term (eq. 8)

    L_IGDM = KL( softmax(T(x+delta) - T(x-delta)) || softmax(S(x+delta) - S(x-delta)) ),      delta = x' - x

enters a loss with the weight alpha w(e), where w(e) = e/E rises over the E epochs of the run (eq. 9). The reference
code uses E = 200 (``ramp_len``) for every length of run, and does not clamp x - delta.
"""

from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ltat.attacks import frozen_batch_norm_statistics
from ltat.config import Decided, Section, left_out
from ltat.config.sections import Count, NonNegative, Positive
from ltat.methods.divergences import Reduction
from ltat.methods.step import Step

T = TypeVar("T")


class IgdmSection(Section):
    """The IGDM term (Lee, Cho, Kim; ICLR 2025; arXiv 2312.03286)."""

    alpha: Decided[NonNegative] = left_out()
    """Weight α of the term; left out, 1 up to ten classes and 10 above (the authors' code has 20 on CIFAR-100)."""
    ramp: Literal["linear", "none"] = "linear"
    """`linear` (the weight rises from 0 as e/E over the epochs) or `none`."""
    ramp_len: Count | Literal["all"] = "all"
    """Number of epochs over which the weight rises, or `all` of the run (the authors' code: 200)."""
    temp: Positive = 1.0
    """Temperature of the divergence, above 0."""
    reduction: Reduction = "batchmean"
    """Mean of the divergence: `batchmean`, `elementmean`, `10xelementmean` or `sum`."""
    bn: Literal["two", "concat", "freeze_minus"] = "two"
    """Forwards of S: `two`, `concat` (x + δ and x − δ as one batch) or `freeze_minus` (x − δ changes no statistics)."""
    clamp_minus: bool = False
    """Whether x − δ is clamped to the box; the authors' code does not clamp it."""


def published_alpha(num_classes: int) -> float:
    """The weight of IGDM's authors: 1 on CIFAR-10, 10 on CIFAR-100 and Tiny-ImageNet."""
    return 10.0 if num_classes > 10 else 1.0


def weight_of(settings: IgdmSection, step: Step) -> float:
    """alpha w(e): it rises linearly to alpha over ``ramp_len`` epochs, or is alpha throughout."""
    if settings.ramp == "none":
        return settings.alpha
    return settings.alpha * min(1.0, step.epoch / (step.epochs if settings.ramp_len == "all" else settings.ramp_len))


def mirrored(settings: IgdmSection, step: Step) -> Tensor:
    """x - delta [B, ch, H, W], whose pixels can leave [0, 1] unless ``clamp_minus`` is set."""
    x = step.batch.images
    x_minus = x - (step.x_adv - x)
    return x_minus.clamp(0, 1) if settings.clamp_minus else x_minus


def student_on_both(
    settings: IgdmSection, step: Step, x_minus: Tensor, on_plus: Callable[[Tensor | None], T]
) -> tuple[T, Tensor]:
    """The result of ``on_plus`` for S(x + delta), and S(x - delta) [B, C], by the forwards that ``bn`` names.

    Args:
        settings: of the term.
        step: a step with x' = x + delta.
        x_minus: x - delta, [B, ch, H, W].
        on_plus: receives S(x + delta) [B, C] where one forward of both batches has computed it; receives None
            otherwise, and runs S itself.
    """
    return FORWARDS[settings.bn](step, x_minus, on_plus)


def student_plus(step: Step, known: Tensor | None = None) -> Tensor:
    """S(x + delta) [B, C], or ``known`` where it is already computed."""
    logits: Tensor = step.model(step.x_adv) if known is None else known
    return logits


def _two(step: Step, x_minus: Tensor, on_plus: Callable[[Tensor | None], T]) -> tuple[T, Tensor]:
    return on_plus(None), step.model(x_minus)


def _one(step: Step, x_minus: Tensor, on_plus: Callable[[Tensor | None], T]) -> tuple[T, Tensor]:
    plus, minus = step.model(torch.cat([step.x_adv, x_minus])).chunk(2)
    return on_plus(plus), minus


def _frozen_second(step: Step, x_minus: Tensor, on_plus: Callable[[Tensor | None], T]) -> tuple[T, Tensor]:
    return on_plus(None), frozen_forward(step.model, x_minus)


FORWARDS: dict[str, Callable[..., tuple[T, Tensor]]] = {"two": _two, "concat": _one, "freeze_minus": _frozen_second}


def frozen_forward(model: nn.Module, x_minus: Tensor) -> Tensor:
    """Logits [B, C] of a forward that does not change the running statistics of batch norm."""
    with frozen_batch_norm_statistics(model):
        logits: Tensor = model(x_minus)
        return logits
