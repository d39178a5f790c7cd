"""TRADES (Zhang et al., ICML 2019; arXiv 1901.08573): accuracy against the divergence of f(x') from f(x).

    x'  = PGD on sum_i KL( p(x_i) || p(x'_i) ), network in evaluation mode, p(x) held fixed
    min_w  mean_i CE( f(x_i), y_i ) + beta * mean_i KL( p(x_i) || p(x'_i) ),   beta = 1/lambda          (Algorithm 1)

p = softmax(f), KL summed over classes, the gradient of the second term through both of its arguments. It is formed in
log space: from a softmax target it would be NaN once a probability underflows. The reference code runs x through the
network a second time for that target, which changes nothing but batch norm's running statistics.
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
    """Whether p(x) is computed a second time in the loss, as in the reference code; only batch norm notices."""


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
