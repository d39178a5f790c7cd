"""RSLAD (Zi, Zhao, Ma, Jiang; ICCV 2021; arXiv 2108.07969): soft labels of a robust teacher replace every label.

    x' = argmax  KL( T(x) || S(x') )                                     S in evaluation mode
    L  = alpha KL( T(x) || S(x') ) + (1 - alpha) KL( T(x) || S(x) ),     alpha = 5/6

The reference code computes each divergence as p_T (log(p_T + 1e-5) - log p_S), averages it over images *and* classes,
and multiplies by 10 for CIFAR-100, so that it is a tenth of the batchmean for both data sets. It runs S(x') before
S(x), both in training mode. In one of its scripts (ResNet-18 on CIFAR-100) the teacher runs in half precision; here it
runs in the precision of the training (``teacher.precision``).
"""

from typing import Annotated, ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ltat.config import AttackSection, OptimSection, ScheduleSection, TrainSection
from ltat.config.sections import NonNegative, Quotient, Tree
from ltat.methods.distillation import Distillation, DistillationConfig, KdSection
from ltat.methods.divergences import REDUCTIONS, kl_terms
from ltat.methods.step import LossTerms, Step


class RsladSection(KdSection):
    """The constants of RSLAD's loss (Zi et al., ICCV 2021)."""

    share: Annotated[Quotient, Field(ge=0, le=1)] = 5 / 6
    """α of the paper, 0 to 1: the share of the adversarial term."""
    guard: NonNegative = 1e-5
    """Constant added to p_T inside its logarithm, as in the reference code."""


class RsladConfig(DistillationConfig):
    """The published settings: SGD 0.1, weight decay 2e-4, 300 epochs, x0.1 after epochs 215, 260 and 285."""

    method: Literal["rslad"] = "rslad"
    attack: AttackSection = AttackSection(loss="kl-clean")
    optim: OptimSection = OptimSection(wd=2e-4)
    schedule: ScheduleSection = ScheduleSection(milestones=(215 / 300, 260 / 300, 285 / 300), milestone_base=0)
    train: TrainSection = TrainSection(epochs=300)
    kd: RsladSection = RsladSection()

    def by_method(self, num_classes: int) -> Tree:
        """The mean of the divergence: elementmean on CIFAR-10, and ten times the elementmean above 10 classes."""
        mean = "elementmean" if num_classes <= 10 else "10xelementmean"
        return super().by_method(num_classes) | {"kd.reduction": mean}


class Rslad(Distillation):
    """5/6 KL( T(x) || S(x') ) + 1/6 KL( T(x) || S(x) )."""

    Config: ClassVar[type[RsladConfig]] = RsladConfig
    config: RsladConfig

    def distil(self, step: Step, student_adv: Tensor | None = None) -> LossTerms:
        """5/6 K(x') + 1/6 K(x), with K(u) = KL( T(x) || S(u) )."""
        alpha, x = self.config.kd.share, step.batch.images
        student_adv = step.model(step.x_adv) if student_adv is None else student_adv
        student_clean = step.model(x)
        teacher = step.whole(self.teacher_logits(x))
        adv, clean = self.divergence(teacher, student_adv), self.divergence(teacher, student_clean)
        return LossTerms(alpha * adv + (1 - alpha) * clean, student_adv, {"kd_adv": adv, "kd_clean": clean})

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """p_T (log(p_T + guard) - log p_S) of logits [B, C], reduced."""
        log_p, log_q = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
        guard = self.config.kd.guard
        terms = log_p.exp() * ((log_p.exp() + guard).log() - log_q) if guard else kl_terms(log_p, log_q)
        return REDUCTIONS[self.config.kd.reduction](terms)
