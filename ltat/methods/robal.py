"""RoBal (Wu et al., CVPR 2021; arXiv 2104.02703): a cosine classifier with margins, and an adjustment at inference.

With the cosines v of :class:`ltat.models.CosineClassifier`, x' = PGD on CE(v(x'), y), network in evaluation mode:

    L   = L_1 + beta * L_2
    L_1 = mean CE( s * (v(x') - D_y at the true class) + tau_b * log(n / N), y )
    L_2 = mean KL( softmax(v(x)) || softmax(v(x')) ),                   gradient through both
    D_c = tau_m / s * log(n_c / n_min) + m                              the margin, larger for head classes

The deployed network, which is also the saved one, returns z = s_out * v - tau_p * log(n / N). Training computes v from
z. The reference code forwards both batches a second time (``robal.extra_forwards``), which only changes batch-norm
statistics, and multiplies its learning rate by the decay in every epoch from 60 on (``schedule.kind=compounding``). The
defaults are those of its CIFAR-10 model "RoBal-R".
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltat.attacks import Objective
from ltat.config import AttackSection, OptimSection, RunConfig, ScheduleSection, Section, TrainSection
from ltat.config.sections import NonNegative, Positive
from ltat.methods.base import Method
from ltat.methods.divergences import kl_divergence
from ltat.methods.objectives import inner_objective
from ltat.methods.step import LossTerms, Step
from ltat.models import Classifier, CosineClassifier, put_head


class RobalSection(Section):
    """The constants of RoBal (Wu et al., CVPR 2021); the defaults are those of its CIFAR-10 model "RoBal-R"."""

    scale: Positive = 10.0
    """s, by which the cosines are multiplied in the loss."""
    margin: NonNegative = 0.1
    """m, the margin that all classes share, between cosines."""
    tau_b: NonNegative = 1.5
    """τ_b, the weight of the bias log(n/N) in training."""
    tau_m: NonNegative = 0.3
    """τ_m, the weight of the class-wise part of the margin."""
    beta: NonNegative = 6.0
    """β, the weight of KL(v(x) ‖ v(x'))."""
    gamma_w: NonNegative = 1 / 32
    """γ_w, added to the norm of a class's weights."""
    tau_p: NonNegative = 0.0
    """τ_p, the weight of log(n/N) that is subtracted from the logits at inference."""
    scale_out: Positive = 1.0
    """s_out, by which the cosines are multiplied at inference."""
    extra_forwards: bool = True
    """Whether both batches run a second time, as in the reference code; only batch-norm statistics change."""


class RobalConfig(RunConfig):
    """The published settings: 80 epochs, batch 64, weight decay 2e-4; 5 steps of 0.0078 from a one-sided start."""

    method: Literal["robal"] = "robal"
    attack: AttackSection = AttackSection(eps=0.031, steps=5, step_size=0.0078, start="pos_uniform")
    optim: OptimSection = OptimSection(wd=2e-4)
    schedule: ScheduleSection = ScheduleSection(kind="compounding", milestones=(0.75, 0.9375))
    train: TrainSection = TrainSection(epochs=80, batch_size=64)
    robal: RobalSection = RobalSection()


class Robal(Method):
    """Cosine classifier, class-aware margins and bias, and TRADES' regulariser on the cosines."""

    Config = RobalConfig
    config: RobalConfig

    def __init__(self, config: RobalConfig, class_counts: Tensor, teacher: nn.Module | None = None) -> None:
        super().__init__(config, class_counts, teacher)
        self.offset = -config.robal.tau_p * log_share(class_counts)
        self.corrects_prior = config.robal.tau_b > 0

    def margins(self, shares: Tensor) -> Tensor:
        """D_c [C] of log(n_c / N) [C]."""
        robal = self.config.robal
        return robal.tau_m / robal.scale * (shares - shares.min()) + robal.margin

    def prepare_model(self, model: Classifier) -> Classifier:
        """Put the cosine classifier in place, with its constants."""
        put_head(model, "cosine")
        head = model.classifier
        assert isinstance(head, CosineClassifier)
        head.gamma.fill_(self.config.robal.gamma_w)
        head.scale.fill_(self.config.robal.scale_out)
        head.offset.copy_(self.offset)
        return model

    def cosines(self, logits: Tensor) -> Tensor:
        """v [B, C] of the deployed network's logits z."""
        return _cosines(logits, self.offset, self.config.robal.scale_out)

    def objective(self, step: Step) -> Objective:
        """``attack.loss`` of the unscaled cosines."""

        # kl-self compares the cosines on x' with those on x.
        def cosines_of(x: Tensor) -> Tensor:
            return self.cosines(step.model(x))

        inner = inner_objective(self.config.attack.loss, cosines_of, step.batch, step.log_prior, self.teacher)
        function, bound = (inner.func, inner.keywords) if isinstance(inner, partial) else (inner, {})
        return partial(_on_cosines, inner=function, offset=self.offset, scale=self.config.robal.scale_out, **bound)

    def loss(self, step: Step) -> LossTerms:
        """L_1 + beta * L_2."""
        robal, labels, x = self.config.robal, step.batch.labels, step.batch.images
        logits = step.model(step.x_adv)
        v_adv = self.cosines(logits)
        self._extra_forward(step.model, x)
        v_clean = self.cosines(step.model(x))
        self._extra_forward(step.model, step.x_adv)
        shares = log_share(step.class_counts)
        at_true_class = F.one_hot(labels, logits.shape[1]) * self.margins(shares)
        l_1 = F.cross_entropy(robal.scale * (v_adv - at_true_class) + robal.tau_b * shares, labels)
        l_2 = kl_divergence(v_clean, v_adv).mean()
        return LossTerms(l_1 + robal.beta * l_2, logits, {"cls": l_1, "kl": l_2})

    @torch.no_grad()
    def _extra_forward(self, model: nn.Module, images: Tensor) -> None:
        if self.config.robal.extra_forwards:
            model(images)


def _cosines(logits: Tensor, offset: Tensor, scale: float) -> Tensor:
    return (logits - offset.to(logits)) / scale


def _on_cosines(
    logits: Tensor, labels: Tensor, x_adv: Tensor, inner: Objective, offset: Tensor, scale: float, **bound: Any
) -> Tensor:
    return inner(_cosines(logits, offset, scale), labels, x_adv, **bound)


def log_share(class_counts: Tensor) -> Tensor:
    """log(n_c / N) of n_c [C], fp32 [C]; a class without images counts as if it had one."""
    counts = class_counts.clamp(min=1).float()
    return (counts / counts.sum()).log()
