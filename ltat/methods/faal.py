"""FAAL (Zhang et al., CVPR 2024; arXiv 2402.17729): adversarial training under the worst distribution over classes.

    x'   = PGD on plain CE, network in evaluation mode
    L    = C/B * sum_i p_{y_i} CE( f(x'_i), y_i )
    p    = argmax_p sum_c p_c g_c   over the simplex, subject to KL(u || p) <= r,   u = (1/C, ..., 1/C), r = 0.5

p is computed for every batch, without gradient. With m_i = max_{k != y_i} q_k - q_{y_i}, the margin of
q = softmax(f(x'_i)),

    g_c  = sum of m_i over the images of class c     (``faal.gain=images``: the reference code; 0 for an absent class)
    g_c  = their mean                                (``faal.gain=classes``; -1, the least value, for an absent class)

The reference code solves this with a conic solver. At the maximum p_c = lambda u_c / (nu - g_c) with nu > max g, where
lambda scales the sum to 1. KL(u || p) decreases in nu, so a bisection finds nu. The authors fine-tune a robust network
for two epochs (recipe ``faal/faithful``). Their code also runs the clean images through the network after x', which
enters no loss but moves the batch-norm statistics (``faal.extra_forward``).
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ltat.attacks.objectives import margin
from ltat.config import RunConfig, Section
from ltat.config.sections import NonNegative
from ltat.methods.base import Method
from ltat.methods.step import LossTerms, Step

BISECTIONS = 40  # halve a range of C r + log(C / r) + 1, down to a relative error of nu - max g of 1e-9 for C = 1000


class FaalSection(Section):
    """The worst distribution over classes (Zhang et al., CVPR 2024)."""

    radius: NonNegative = 0.5
    """r, the radius of the ball of distributions, 0 or more; 0 weights all classes equally."""
    gain: Literal["images", "classes"] = "images"
    """Gain of a class: the sum of the margins of its images (`images`, as in the reference code) or their mean."""
    extra_forward: bool = False
    """Whether a step also runs the clean images, as in the reference code; only batch-norm statistics change."""


class FaalConfig(RunConfig):
    """The field's common protocol; recipe ``faal/faithful`` has the reference code's two epochs of fine-tuning."""

    method: Literal["faal"] = "faal"
    faal: FaalSection = FaalSection()


class Faal(Method):
    """Cross-entropy on adversarial images, weighted by class with the worst weights in a ball around uniform ones."""

    Config = FaalConfig
    config: FaalConfig

    def loss(self, step: Step) -> LossTerms:
        """C/B * sum_i p_{y_i} CE_i on x'."""
        settings, labels = self.config.faal, step.batch.labels
        logits = step.model(step.x_adv)
        if settings.extra_forward:
            with torch.no_grad():
                step.model(step.batch.images)
        gains = class_gains(logits.detach(), labels, settings.gain)
        weights = len(gains) * worst_distribution(gains, settings.radius)
        losses = F.cross_entropy(logits, labels, reduction="none")
        loss = (weights.to(losses)[labels] * losses).mean()
        return LossTerms(loss, logits, {"cls": losses.mean(), "w_min": weights.min(), "w_max": weights.max()})


def class_gains(logits: Tensor, labels: Tensor, gain: str) -> Tensor:
    """g_c in float64, [C], of logits [B, C] and labels [B]; ``gain`` is a key of :data:`GAINS`."""
    # A matrix product, because scattered sums are not deterministic on CUDA.
    member = F.one_hot(labels, logits.shape[1]).double()
    sums = margin(logits.double().softmax(dim=1), labels) @ member
    return GAINS[gain](sums, member.sum(dim=0))


GAINS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "images": lambda sums, images: sums,
    "classes": lambda sums, images: torch.where(images > 0, sums / images.clamp(min=1), -1.0),
}
"""(sums of the margins [C], numbers of images [C]) → g [C]."""


def worst_distribution(gains: Tensor, radius: float) -> Tensor:
    """The p [C] that maximises p @ gains over the simplex with KL(uniform || p) <= radius, in float64.

    Bisects log(nu - max g), in units of max g - min g, a fixed number of times, so that the host reads nothing back.

    Args:
        gains: g, float64 [C].
        radius: r >= 0, in nats.
    """
    classes = len(gains)
    if radius == 0:
        return torch.full_like(gains, 1 / classes)
    spread = gains.max() - gains.min()
    log_gap = ((gains.max() - gains) / spread.clamp(min=torch.finfo(gains.dtype).tiny)).log()  # -inf at the maximum
    # At these two ends the divergence is above r and below r: it is at least (-t - log C - 1) / C and at most exp(-t).
    low = gains.new_full((), -classes * radius - math.log(classes) - 1)
    high = gains.new_full((), -math.log(radius))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        outside = -log_distribution(middle, log_gap).mean() - math.log(classes) > radius
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    return log_distribution(high, log_gap).exp()


def log_distribution(t: Tensor, log_gap: Tensor) -> Tensor:
    """log p with p_c proportional to 1 / (exp(t) + gap_c), [C]."""
    return F.log_softmax(-torch.logaddexp(t, log_gap), dim=0)
