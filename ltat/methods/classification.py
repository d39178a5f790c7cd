"""The classification term of the outer loss on x', chosen by ``loss.cls`` for the methods that have such a term.

z [B, C] are the logits on x', y [B] the labels, n_c the training images of class c, p = softmax(z):

    ce        mean CE( z, y )
    bsl       mean CE( z + tau * log n, y )              balanced softmax: Ren et al., NeurIPS 2020;
                                                         logit adjustment: Menon et al., ICLR 2021
    ldam-drw  sum_i w_i CE( z_i - s * D_{y_i} at the true class, y_i ) / sum_i w_i      Cao et al., NeurIPS 2019
              z = s * cos(h, W_c),  D_c = m * n_c^(-1/4) / max_k n_k^(-1/4)
              w_i = 1 at first, the class-balanced weight of y_i after the share ``loss.drw`` of the epochs
    cb        sum_i w_{y_i} CE( z_i, y_i ) / sum_i w_{y_i}                              Cui et al., CVPR 2019
              w_c proportional to (1 - beta) / (1 - beta^n_c), sum_c w_c = C
    focal     mean (1 - p_y)^gamma CE( z, y )                                           Lin et al., ICCV 2017

``loss.smoothing`` = e of ``ce`` and ``bsl`` mixes the targets with the prior that the loss adds, u_c = n_c^tau / sum_k
n_k^tau (tau = 0 for ``ce``: the uniform 1/C):

    mean_i - sum_c t_ic log softmax(z_i + tau log n)_c,     t_i = (1 - e) onehot(y_i) + e u

Why u is not uniform under ``bsl``. The minimiser has softmax(z + tau log n) = (1 - e) p + e u, where p is the posterior
of the training set at x, so

    exp(z_c)  ~  ((1 - e) p_c + e u_c) / n_c^tau  =  (1 - e) p_c / n_c^tau + e u_c / n_c^tau

Without smoothing exp(z_c) ~ p_c / n_c^tau. With this u the second term is the same for all classes: every class gains
alike, and the order of the classes, so the decision, stays at every x. With the uniform u it is e / (C n_c^tau), most
for the rarest: at ratio 50, ten classes and e = 0.1 an x of the largest class beyond doubt would be given to the
smallest with odds of 50 e/C / (1 - e + e/C) = 0.55 to 1, and with e = 0.2 the smallest would win.

The constants m, s and the normalisations are those of Cao et al.'s code. To add a loss, write a function of (z,
:class:`ltat.methods.Step`, settings) and enter it in :data:`LOSSES`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltat.config import BslSection, LossSection, RunConfig, named_epoch
from ltat.errors import LtatError
from ltat.methods.base import Method
from ltat.methods.step import Step
from ltat.models import Classifier, CosineClassifier, put_head
from ltat.ops import balanced_kd


class ClassificationConfig(RunConfig):
    """The settings of a method with a choice of the classification term on x'."""

    loss: LossSection = LossSection()
    bsl: BslSection = BslSection()


def _keep_network(model: Classifier, settings: LossSection) -> Classifier:
    del settings
    return model


@dataclass(frozen=True)
class ClassificationLoss:
    """One entry of :data:`LOSSES`.

    Attributes:
        value: (logits fp32 [B, C] on x', step, settings) → the 0-dim loss.
        prepare: changes the network when it is built.
        in_balanced_kd: whether ``balanced_kd`` computes this loss and a distillation term in one pass.
        smooths: whether the loss takes ``loss.smoothing``.
        needs_every_class: whether the loss is undefined for a class without images.
        corrects_prior: whether the loss corrects for the class frequencies.
    """

    value: Callable[[Tensor, Step, ClassificationConfig], Tensor]
    prepare: Callable[[Classifier, LossSection], Classifier] = _keep_network
    in_balanced_kd: bool = False
    smooths: bool = False
    needs_every_class: bool = False
    corrects_prior: bool = False


def effective_number_weights(class_counts: Tensor, beta: float) -> Tensor:
    """(1 - beta) / (1 - beta^n_c) of n_c [C], scaled to sum to C: fp32 [C] (Cui et al., CVPR 2019)."""
    n = class_counts.clamp(min=1).double()
    w = (1 - beta) / (1 - beta**n)
    return (w / w.sum() * len(w)).float()


def ldam_margins(class_counts: Tensor, largest: float) -> Tensor:
    """D_c of n_c [C], the margin between cosines: fp32 [C], ``largest`` for the rarest class."""
    n = class_counts.clamp(min=1).double()
    return (largest * (n.min() / n) ** 0.25).float()


def ldam(logits: Tensor, labels: Tensor, margins: Tensor, scale: float, weights: Tensor | None = None) -> Tensor:
    """Weighted mean cross-entropy with the true class's logit lowered by its margin (Cao et al., NeurIPS 2019).

    Args:
        logits: s times the cosines, [B, C].
        labels: [B].
        margins: D_c between cosines, [C].
        scale: s.
        weights: weight of each class, [C]; the mean is sum w l / sum w.
    """
    at_true_class = F.one_hot(labels, logits.shape[1]) * margins
    return F.cross_entropy(logits - scale * at_true_class, labels, weight=weights)


def focal(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """Mean of (1 - p_y)^gamma CE of logits [B, C] and labels [B]."""
    each = F.cross_entropy(logits, labels, reduction="none")
    # 1 - p_y = -expm1(-CE) is exact near 0. It is kept above 0, where a gamma below 1 has an infinite slope.
    missed = (-torch.expm1(-each)).clamp(min=torch.finfo(each.dtype).tiny)
    return (missed**gamma * each).mean()


def smoothed(loss: Tensor, logits: Tensor, log_prior: Tensor, share: float) -> Tensor:
    """(1 - share) of ``loss``, and ``share`` of the cross-entropy of the prior, whatever the label.

    Args:
        loss: the mean cross-entropy of logits + log_prior and the labels, 0-dim.
        logits: z, [B, C].
        log_prior: tau log n, [C], with any constant added.
        share: from 0 to below 1; with 0 the result is ``loss``.
    """
    if not share:
        return loss
    of_prior = -(F.log_softmax(logits + log_prior, dim=1) @ log_prior.softmax(dim=0)).mean()
    return (1 - share) * loss + share * of_prior


def _cross_entropy(logits: Tensor, step: Step, config: ClassificationConfig) -> Tensor:
    loss = F.cross_entropy(logits, step.batch.labels)
    return smoothed(loss, logits, torch.zeros_like(step.log_prior), config.loss.smoothing)


def _balanced_softmax(logits: Tensor, step: Step, config: ClassificationConfig) -> Tensor:
    prior = config.bsl.tau * step.log_prior
    loss = balanced_kd(logits, step.batch.labels, prior).loss
    return smoothed(loss, logits, prior, config.loss.smoothing)


def _ldam_drw(logits: Tensor, step: Step, config: ClassificationConfig) -> Tensor:
    settings = config.loss
    margins = ldam_margins(step.class_counts, settings.margin)
    deferred = step.epoch <= named_epoch(settings.drw, step.epochs)
    weights = None if deferred else effective_number_weights(step.class_counts, settings.beta)
    return ldam(logits, step.batch.labels, margins, settings.scale, weights)


def _class_balanced(logits: Tensor, step: Step, config: ClassificationConfig) -> Tensor:
    weights = effective_number_weights(step.class_counts, config.loss.beta)
    return F.cross_entropy(logits, step.batch.labels, weight=weights)


def _focal(logits: Tensor, step: Step, config: ClassificationConfig) -> Tensor:
    return focal(logits, step.batch.labels, config.loss.gamma)


def _cosine_head(model: Classifier, settings: LossSection) -> Classifier:
    """LDAM's last layer: rows of length 1 at the start, and logits s * cos, which every attack then uses."""
    put_head(model, "cosine")
    head = model.classifier
    assert isinstance(head, CosineClassifier)
    with torch.no_grad():
        head.weight.copy_(F.normalize(head.weight, dim=1))
    head.gamma.zero_()
    head.scale.fill_(settings.scale)
    return model


LOSSES: dict[str, ClassificationLoss] = {
    "ce": ClassificationLoss(_cross_entropy, smooths=True),
    "bsl": ClassificationLoss(_balanced_softmax, in_balanced_kd=True, smooths=True, corrects_prior=True),
    "ldam-drw": ClassificationLoss(_ldam_drw, _cosine_head, needs_every_class=True, corrects_prior=True),
    "cb": ClassificationLoss(_class_balanced, needs_every_class=True, corrects_prior=True),
    "focal": ClassificationLoss(_focal),
}


class ClassificationMethod(Method):
    """Base of the methods that choose their classification term on x' by ``loss.cls``.

    Raises:
        LtatError: an unknown loss, or one that needs images of every class where a class has none.
    """

    config: ClassificationConfig

    def __init__(self, config: ClassificationConfig, class_counts: Tensor, teacher: nn.Module | None = None) -> None:
        super().__init__(config, class_counts, teacher)
        name = config.loss.cls
        if name not in LOSSES:
            raise LtatError(f"loss.cls={name} is unknown; choose one of {', '.join(LOSSES)}")
        self.chosen = LOSSES[name]
        if config.loss.smoothing and not self.chosen.smooths:
            others = " or ".join(other for other, loss in LOSSES.items() if loss.smooths)
            raise LtatError(f"loss.smoothing needs loss.cls={others} and it is {name}; set loss.smoothing=0")
        self.tau, self.corrects_prior = config.bsl.tau, self.chosen.corrects_prior
        if self.chosen.needs_every_class and not class_counts.all():
            empty = int(class_counts.argmin())
            raise LtatError(f"loss.cls={name} weights classes by images and class {empty} has none; use ce or bsl")

    def prepare_model(self, model: Classifier) -> Classifier:
        """Give the network the last layer that the loss needs."""
        return self.chosen.prepare(model, self.config.loss)

    def classification(self, logits: Tensor, step: Step) -> Tensor:
        """The chosen loss of the logits fp32 [B, C] on x', 0-dim."""
        return self.chosen.value(logits, step, self.config)
