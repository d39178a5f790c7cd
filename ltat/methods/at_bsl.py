"""AT-BSL (Yue et al., CVPR 2024): adversarial training with the balanced softmax.

    min_w  mean_i CE( f_w(x'_i) + tau * log n, y_i ),   x' = PGD on plain CE, network in evaluation mode

The reference code has no tau (it is 1) and drops the learning rate a third time in epoch 100; both are kept.
"""

from typing import Literal

from torch import Tensor, nn

from ltat.config import BslSection, RunConfig, ScheduleSection
from ltat.data import Batch
from ltat.methods.base import LossTerms, Method, Progress
from ltat.ops import balanced_kd


class AtBslConfig(RunConfig):
    """The published settings: SGD 0.1, 100 epochs, x0.1 from epochs 75 and 90, and again in epoch 100."""

    method: Literal["at-bsl"] = "at-bsl"
    lr: ScheduleSection = ScheduleSection(milestones=(0.75, 0.9, 1.0))
    bsl: BslSection = BslSection()


class AtBsl(Method):
    """Balanced-softmax cross-entropy on adversarial images."""

    Config = AtBslConfig
    config: AtBslConfig

    @property
    def log_prior(self) -> Tensor:
        """tau * log n_c of the training set, [C]."""
        return self.config.bsl.tau * self.class_counts.float().log()

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, progress: Progress) -> LossTerms:
        """Balanced softmax on the logits of ``x_adv`` [B, C, H, W]."""
        del progress
        logits = model(x_adv)
        terms = balanced_kd(logits, batch.labels, self.log_prior)
        return LossTerms(terms.loss, logits.detach(), {"cls": terms.cls})
