"""TRADES (Zhang et al., ICML 2019; arXiv 1901.08573): trade accuracy against the divergence of f(x') from f(x).

    x'  = PGD on sum_i KL( p(x_i) || p(x'_i) ), network in evaluation mode, p(x) held fixed
    min_w  mean_i CE( f(x_i), y_i ) + beta * mean_i KL( p(x_i) || p(x'_i) ),   beta = 1/lambda          (Algorithm 1)

p = softmax(f) and KL is summed over classes. The gradient of the second term flows through both of its arguments. The
divergence is computed in log space, because with a softmax target it becomes NaN once a probability underflows. The
reference code runs x through the network a second time for that target, which only changes batch norm's running
statistics.
"""

from typing import Literal

import torch.nn.functional as F

from ltat.config import AttackSection, RunConfig, Section
from ltat.config.sections import NonNegative
from ltat.methods.base import Method
from ltat.methods.divergences import kl_divergence
from ltat.methods.step import LossTerms, Step


class TradesSection(Section):
    """TRADES' loss (Zhang et al., ICML 2019)."""

    beta: NonNegative = 6.0
    """Weight β of KL(p(x) ‖ p(x')), 0 or more."""
    third_forward: bool = False
    """Whether the loss computes p(x) twice, as in the reference code; only batch-norm statistics change."""


class TradesConfig(RunConfig):
    """The field's common protocol; recipe ``trades/faithful`` has the reference code's settings."""

    method: Literal["trades"] = "trades"
    attack: AttackSection = AttackSection(loss="kl-self")
    trades: TradesSection = TradesSection()


class Trades(Method):
    """CE(f(x), y) + beta * KL(p(x) || p(x')), gradient through both predictions."""

    Config = TradesConfig
    config: TradesConfig

    def loss(self, step: Step) -> LossTerms:
        """CE(f(x), y) + beta * KL(p(x) || p(x')); forwards of x, x', and x again if set."""
        settings, model, x = self.config.trades, step.model, step.batch.images
        clean, adv = model(x), model(step.x_adv)
        target = model(x) if settings.third_forward else clean
        cls = F.cross_entropy(clean, step.batch.labels)
        kl = kl_divergence(target, adv).mean()
        return LossTerms(cls + settings.beta * kl, adv, {"cls": cls, "kl": kl})
