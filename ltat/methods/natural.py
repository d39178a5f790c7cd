"""Natural training: no attack. The baseline that every robust method is compared with.

    min_w  mean_i CE( f_w(x_i), y_i )

Of the ``attack`` settings only ``norm`` and ``eps`` have an effect: they are the threat model of evaluation. The others
are accepted, so that one protocol fits every method.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ltat.config import AttackSection, RunConfig, SelectSection
from ltat.methods.base import Method
from ltat.methods.step import LossTerms, Step


class NaturalConfig(RunConfig):
    """The field's common protocol; the best checkpoint is the one with the best *clean* accuracy.

    Under attack nearly every checkpoint of natural training has an accuracy of zero, which cannot rank them.
    """

    method: Literal["natural"] = "natural"
    attack: AttackSection = AttackSection(steps=0)
    select: SelectSection = SelectSection(metric="clean")


class Natural(Method):
    """Cross-entropy on clean images."""

    Config = NaturalConfig

    def attack(self, step: Step) -> Tensor:
        """The clean images themselves, [B, ch, H, W]."""
        return step.batch.images

    def loss(self, step: Step) -> LossTerms:
        """Mean cross-entropy of the logits on ``x_adv``, which are the clean images."""
        logits = step.model(step.x_adv)
        loss = F.cross_entropy(logits, step.batch.labels)
        return LossTerms(loss, logits, {"cls": loss})
