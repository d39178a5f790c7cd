"""MART (Wang et al., ICLR 2020): misclassification-aware adversarial training.

    x'   = PGD on CE, network in evaluation mode
    BCE  = mean_i [ CE( f(x'_i), y_i ) - log( 1 - max_{k != y_i} p_k(x'_i) ) ]
    min_w  BCE + beta * mean_i KL( p(x_i) || p(x'_i) ) * ( 1 - p_{y_i}(x_i) )        (Algorithm 1)

p = softmax(f), KL is summed over classes, and the gradient flows through every factor. The reference code keeps each
logarithm and the last weight away from zero by a small constant (the ``guard`` settings).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ltat.config import RunConfig, Section
from ltat.config.sections import NonNegative, Positive
from ltat.methods.base import Method
from ltat.methods.step import LossTerms, Step


class MartSection(Section):
    """MART's loss (Wang et al., ICLR 2020)."""

    beta: NonNegative = 5.0
    """Weight β of the divergence, 0 or more; the paper has 5 for ResNet-18 and 6 for WRN."""
    margin_guard: Positive = 1e-4
    """Constant of the margin term 1 + margin_guard − p_k; the reference code has 1.0001 − p_k."""
    log_guard: Positive = 1e-12
    """Constant added to p(x') inside the logarithms, as in the reference code."""
    weight_guard: NonNegative = 1e-7
    """Constant of the weight 1 + weight_guard − p_y; the reference code has 1.0000001 − p_y."""


class MartConfig(RunConfig):
    """The field's common protocol; recipe ``mart/faithful`` has the reference code's settings for ResNet-18."""

    method: Literal["mart"] = "mart"
    mart: MartSection = MartSection()


class Mart(Method):
    """Boosted CE on x' + beta * KL(p(x) || p(x')) * (1 - p_y(x)), the weight being largest where x is misclassified."""

    Config = MartConfig
    config: MartConfig

    def loss(self, step: Step) -> LossTerms:
        """BCE + beta * weighted KL; forwards of x, then of x'."""
        labels = step.batch.labels
        clean, adv = step.model(step.batch.images), step.model(step.x_adv)
        cls = self.boosted_cross_entropy(adv, labels)
        kl = self.weighted_divergence(clean, adv, labels)
        return LossTerms(cls + self.config.mart.beta * kl, adv, {"cls": cls, "kl": kl})

    def boosted_cross_entropy(self, adv: Tensor, labels: Tensor) -> Tensor:
        """BCE of logits [B, C] on x', 0-dim."""
        guards = self.config.mart
        other = adv.softmax(dim=1).scatter(1, labels[:, None], -1.0).amax(dim=1)  # largest p_k with k != y
        margin = -torch.log(1 + guards.margin_guard - other + guards.log_guard).mean()
        return F.cross_entropy(adv, labels) + margin

    def weighted_divergence(self, clean: Tensor, adv: Tensor, labels: Tensor) -> Tensor:
        """mean KL(p(x) || p(x')) * (1 - p_y(x)) of two logits [B, C], 0-dim; finite where a probability underflows."""
        guards = self.config.mart
        log_p = clean.log_softmax(dim=1)
        p = log_p.exp()
        kl = (p * (log_p - torch.log(adv.softmax(dim=1) + guards.log_guard))).sum(dim=1)
        own = p.gather(1, labels[:, None]).squeeze(1)
        return (kl * (1 + guards.weight_guard - own)).mean()
