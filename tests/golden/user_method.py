"""A method in a file: the example of the documentation, under every contract that is compared."""

import torch.nn.functional as F

from ltat.config import RunConfig, Section
from ltat.methods import LossTerms, Method


class FocusSection(Section):
    power: float = 1.0


class FocusConfig(RunConfig):
    focus: FocusSection = FocusSection()


class Focus(Method):
    """Cross-entropy on x', weighted by the confidence in the true class on x."""

    Config = FocusConfig

    def loss(self, *given):
        # Either one step that carries all, or (model, batch, x_adv, progress).
        step = given[0]
        model, batch, x_adv = (step.model, step.batch, step.x_adv) if len(given) == 1 else given[:3]
        clean, logits = model(batch.images), model(x_adv)
        confidence = clean.softmax(1).gather(1, batch.labels[:, None])[:, 0].detach()
        each = F.cross_entropy(logits, batch.labels, reduction="none")
        loss = (confidence**self.config.focus.power * each).mean()
        return LossTerms(loss, logits.detach(), {"confidence": confidence.mean()})
