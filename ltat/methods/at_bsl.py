"""AT-BSL (Yue et al., CVPR 2024): adversarial training with the balanced softmax.

    min_w  mean_i CE( f_w(x'_i) + tau * log n, y_i ),   x' = PGD on plain CE, network in evaluation mode

``loss.cls`` replaces the balanced softmax by another loss. The reference code has no tau, which is tau = 1, and drops
the learning rate a third time in epoch 100; both are the defaults here.
"""

from typing import Literal

from ltat.config import LossSection, ScheduleSection
from ltat.methods.classification import ClassificationConfig, ClassificationMethod
from ltat.methods.step import LossTerms, Step


class AtBslConfig(ClassificationConfig):
    """The published settings: SGD 0.1, 100 epochs, x0.1 from epochs 75 and 90, and again in epoch 100."""

    method: Literal["at-bsl"] = "at-bsl"
    schedule: ScheduleSection = ScheduleSection(milestones=(0.75, 0.9, 1.0))
    loss: LossSection = LossSection(cls="bsl")


class AtBsl(ClassificationMethod):
    """Balanced-softmax cross-entropy on adversarial images."""

    Config = AtBslConfig
    config: AtBslConfig

    def loss(self, step: Step) -> LossTerms:
        """``loss.cls``, by default balanced softmax, of the logits on x'."""
        logits = step.model(step.x_adv)
        loss = self.classification(logits, step)
        return LossTerms(loss, logits, {"cls": loss})
