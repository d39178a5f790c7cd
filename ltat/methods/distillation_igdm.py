"""IGDM (Lee, Cho, Kim; ICLR 2025; arXiv 2312.03286) on top of ARD, RSLAD and AdaAD.

With x' of the base method's attack, and the term of :mod:`ltat.methods.igdm` (eq. 9),

    L = L_AD + alpha w(e) KL( softmax(T(x+delta) - T(x-delta)) || softmax(S(x+delta) - S(x-delta)) ),    w(e) = e/E

The bases of the reference code differ from the original methods: ARD has temperature 1, no cross-entropy and an attack
in evaluation mode; all divergences are averaged over images, and RSLAD has no guard. The reference code runs S in
training mode on x', x and x - delta, and for AdaAD on x' again. Forwards that enter no loss run here only with
``kd.clean_forward`` (ARD) and ``kd.extra_forwards`` (AdaAD), which the recipes set.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from ltat.config import AttackSection, OptimSection, ScheduleSection, TrainSection
from ltat.config.sections import Tree
from ltat.errors import LtatError
from ltat.methods.adaad import Adaad, AdaadConfig, AdaadSection
from ltat.methods.ard import Ard, ArdConfig, ArdSection
from ltat.methods.distillation import Distillation
from ltat.methods.divergences import kl
from ltat.methods.igdm import IgdmSection, mirrored, published_alpha, student_on_both, weight_of
from ltat.methods.rslad import Rslad, RsladConfig, RsladSection
from ltat.methods.step import LossTerms, Step


class AdaadIgdmSection(AdaadSection):
    """AdaAD's constants, and the forwards of the IGDM authors' code."""

    extra_forwards: bool = False
    """Whether S runs on x', x, x − δ and x' again, as in the authors' code; only batch-norm statistics change."""


SGD = OptimSection(wd=2e-4)
SCHEDULE = ScheduleSection(milestones=(0.5, 0.75), milestone_base=0)  # x0.1 after epochs 100 and 150 of 200
LENGTH = TrainSection(epochs=200)


class ArdIgdmConfig(ArdConfig):
    """ARD as the IGDM authors run it."""

    method: Literal["ard+igdm"] = "ard+igdm"  # type: ignore[assignment]
    attack: AttackSection = AttackSection(start="uniform_clamp")
    optim: OptimSection = SGD
    schedule: ScheduleSection = SCHEDULE
    train: TrainSection = LENGTH
    kd: ArdSection = ArdSection(temp=1.0, reduction="batchmean", clean_forward=False)
    igdm: IgdmSection = IgdmSection()

    def by_method(self, num_classes: int) -> Tree:
        """The mean of the divergence, and the weight of the IGDM term."""
        return super().by_method(num_classes) | {"igdm.alpha": published_alpha(num_classes)}


class RsladIgdmConfig(RsladConfig):
    """RSLAD as the IGDM authors run it."""

    method: Literal["rslad+igdm"] = "rslad+igdm"  # type: ignore[assignment]
    optim: OptimSection = SGD
    schedule: ScheduleSection = SCHEDULE
    train: TrainSection = LENGTH
    kd: RsladSection = RsladSection(reduction="batchmean", guard=0)
    igdm: IgdmSection = IgdmSection()

    def by_method(self, num_classes: int) -> Tree:
        """The mean of the divergence, and the weight of the IGDM term."""
        return super().by_method(num_classes) | {"igdm.alpha": published_alpha(num_classes)}


class AdaadIgdmConfig(AdaadConfig):
    """AdaAD as the IGDM authors run it."""

    method: Literal["adaad+igdm"] = "adaad+igdm"  # type: ignore[assignment]
    optim: OptimSection = SGD
    schedule: ScheduleSection = SCHEDULE
    train: TrainSection = LENGTH
    kd: AdaadIgdmSection = AdaadIgdmSection(reduction="batchmean", clean_forward=False)
    igdm: IgdmSection = IgdmSection()

    def by_method(self, num_classes: int) -> Tree:
        """The mean of the divergence, and the weight of the IGDM term."""
        return super().by_method(num_classes) | {"igdm.alpha": published_alpha(num_classes)}


IgdmConfig = ArdIgdmConfig | RsladIgdmConfig | AdaadIgdmConfig


class WithIgdm(Distillation):
    """Adds L_IGDM to a distillation method: inherit from this class first and from the method second."""

    config: IgdmConfig

    def loss(self, step: Step) -> LossTerms:
        """L_AD + alpha w(e) L_IGDM."""
        igdm, x_minus = self.config.igdm, mirrored(self.config.igdm, step)
        (base, s_plus, logs), s_minus = self.distil_on_both(step, x_minus)
        t_plus, t_minus = map(step.whole, self.teacher_logits_of(step.x_adv, x_minus))
        term, weight = kl(t_plus - t_minus, s_plus - s_minus, igdm.reduction, igdm.temp), weight_of(igdm, step)
        ratio = weight * term.detach() / base.detach().clamp_min(1e-12)
        return LossTerms(base + weight * term, s_plus, {**logs, "igdm": term, "kd_ratio": ratio})

    def distil_on_both(self, step: Step, x_minus: Tensor) -> tuple[LossTerms, Tensor]:
        """L_AD, and S(x - delta) [B, C]."""
        return student_on_both(self.config.igdm, step, x_minus, partial(self.distil, step))


class ArdIgdm(WithIgdm, Ard):
    """ARD's loss + alpha w(e) KL( T(x+delta) - T(x-delta) || S(x+delta) - S(x-delta) )."""

    Config = ArdIgdmConfig
    config: ArdIgdmConfig


class RsladIgdm(WithIgdm, Rslad):
    """RSLAD's loss + alpha w(e) KL( T(x+delta) - T(x-delta) || S(x+delta) - S(x-delta) )."""

    Config = RsladIgdmConfig
    config: RsladIgdmConfig


class AdaadIgdm(WithIgdm, Adaad):
    """AdaAD's loss + alpha w(e) KL( T(x+delta) - T(x-delta) || S(x+delta) - S(x-delta) )."""

    Config = AdaadIgdmConfig
    config: AdaadIgdmConfig

    def __init__(self, config: AdaadIgdmConfig, class_counts: Tensor, teacher: nn.Module | None = None) -> None:
        super().__init__(config, class_counts, teacher)
        if config.kd.extra_forwards and config.igdm.bn != "two":
            raise LtatError(
                f"kd.extra_forwards=true needs igdm.bn=two and igdm.bn is {config.igdm.bn}; leave one of them out"
            )

    def distil_on_both(self, step: Step, x_minus: Tensor) -> tuple[LossTerms, Tensor]:
        """With ``kd.extra_forwards`` L_AD uses S(x') [B, C] of the last forward, and L_IGDM that of the first."""
        if not self.config.kd.extra_forwards:
            return super().distil_on_both(step, x_minus)
        student_plus = step.model(step.x_adv)
        with torch.no_grad():
            step.model(step.batch.images)
        student_minus = step.model(x_minus)
        return self.distil(step)._replace(logits=student_plus), student_minus
