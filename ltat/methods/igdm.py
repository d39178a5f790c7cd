"""IGDM (Lee, Cho, Kim; ICLR 2025; arXiv 2312.03286): match the teacher's input gradients without computing any.

A robust network is nearly linear around x (eq. 2), so f(x+delta) - f(x-delta) is about 2 J(x) delta. The term (eq. 8)

    L_IGDM = KL( softmax(T(x+delta) - T(x-delta)) || softmax(S(x+delta) - S(x-delta)) ),      delta = x' - x

is added to a distillation method's loss, with x' of that method's own attack (eq. 9, w(e) = e/E):

    L = L_AD + alpha w(e) L_IGDM

The reference code hard-codes E = 200 (``igdm.ramp_len``) whatever the length of the run, and does not clamp x - delta.
Its bases differ from the original methods: ARD at temperature 1, without cross-entropy, attacked in evaluation mode;
all averaged over images, and RSLAD without a guard. It shows S, in training mode, x', x and x - delta, and for AdaAD x'
once more. Those that enter no loss are left out here, unless ``kd.clean_forward`` (ARD) and
``kd.extra_forwards`` (AdaAD) ask for them, as the recipes do.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from ltat.config import AttackSection, OptimSection, RunConfig, ScheduleSection, Section, TrainSection
from ltat.config.sections import Count, NonNegative, Positive
from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods.adaad import Adaad, AdaadConfig, AdaadSection
from ltat.methods.ard import Ard, ArdConfig, ArdSection
from ltat.methods.base import LossTerms, Progress
from ltat.methods.distillation import Distillation, Distilled
from ltat.methods.divergences import Reduction, kl
from ltat.methods.rslad import Rslad, RsladConfig, RsladSection
from ltat.methods.student_forwards import frozen_forward, one_forward


class IgdmSection(Section):
    """The IGDM term (Lee, Cho, Kim; ICLR 2025; arXiv 2312.03286)."""

    alpha: NonNegative | None = None
    """Weight α of the term; left out, 1, and 10 above ten classes (the authors' release has 20 on CIFAR-100)."""
    ramp: Literal["linear", "none"] = "linear"
    """`linear` (the weight rises from 0 as e/E over the epochs) or `none`."""
    ramp_len: Count | None = None
    """Epochs over which the weight rises; left out, all (the authors' code: 200)."""
    temp: Positive = 1.0
    """Temperature of the divergence, above 0."""
    reduction: Reduction = "batchmean"
    """Mean of the divergence: `batchmean`, `elementmean`, `10xelementmean` or `sum`."""
    bn: Literal["two", "concat", "freeze_minus"] = "two"
    """Forwards of S: `two`, `concat` (x + δ and x − δ as one batch) or `freeze_minus` (x − δ moves no statistics)."""
    clamp_minus: bool = False
    """Whether x − δ is clamped to the box; the authors' code does not."""


class AdaadIgdmSection(AdaadSection):
    """AdaAD's constants, and the forwards of the IGDM authors' code."""

    extra_forwards: bool = False
    """Whether S sees x', x, x − δ and x' again, as in the authors' code; only batch norm notices."""


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


class RsladIgdmConfig(RsladConfig):
    """RSLAD as the IGDM authors run it."""

    method: Literal["rslad+igdm"] = "rslad+igdm"  # type: ignore[assignment]
    optim: OptimSection = SGD
    schedule: ScheduleSection = SCHEDULE
    train: TrainSection = LENGTH
    kd: RsladSection = RsladSection(reduction="batchmean", guard=0)
    igdm: IgdmSection = IgdmSection()


class AdaadIgdmConfig(AdaadConfig):
    """AdaAD as the IGDM authors run it."""

    method: Literal["adaad+igdm"] = "adaad+igdm"  # type: ignore[assignment]
    optim: OptimSection = SGD
    schedule: ScheduleSection = SCHEDULE
    train: TrainSection = LENGTH
    kd: AdaadIgdmSection = AdaadIgdmSection(reduction="batchmean", clean_forward=False)
    igdm: IgdmSection = IgdmSection()


IgdmConfig = ArdIgdmConfig | RsladIgdmConfig | AdaadIgdmConfig


class WithIgdm(Distillation):
    """A distillation method with L_IGDM on top: inherit from this first, from the method second."""

    config: IgdmConfig

    @classmethod
    def resolve(cls, config: RunConfig, num_classes: int) -> RunConfig:
        """Fill what the number of classes decides: the base method's reduction, and alpha."""
        config = super().resolve(config, num_classes)
        assert isinstance(config, IgdmConfig)
        alpha = published_alpha(num_classes) if config.igdm.alpha is None else config.igdm.alpha
        return config.model_copy(update={"igdm": config.igdm.model_copy(update={"alpha": alpha})})

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, progress: Progress) -> LossTerms:
        """L_AD + alpha w(e) L_IGDM for ``x_adv`` [B, C, H, W]."""
        igdm = self.config.igdm
        x_minus = mirrored(batch.images, x_adv, self.threat.box if igdm.clamp_minus else None)
        (base, student_plus, parts), student_minus = self.distil_and_mirror(model, batch, x_adv, x_minus)
        teacher_plus, teacher_minus = self.teacher_logits_of(x_adv, x_minus)
        term = kl(teacher_plus - teacher_minus, student_plus - student_minus, igdm.reduction, igdm.temp)
        weight = self.alpha * ramp(progress, igdm.ramp, igdm.ramp_len)
        ratio = weight * term.detach() / base.detach().clamp_min(1e-12)
        logs = {**parts, "igdm": term.detach(), "kd_ratio": ratio}
        return LossTerms(base + weight * term, student_plus.detach(), logs)

    @property
    def alpha(self) -> float:
        """The weight of L_IGDM at the end of its ramp."""
        alpha = self.config.igdm.alpha
        return published_alpha(len(self.class_counts)) if alpha is None else alpha

    def distil_and_mirror(
        self, model: nn.Module, batch: Batch, x_adv: Tensor, x_minus: Tensor
    ) -> tuple[Distilled, Tensor]:
        """L_AD and S(x - delta) [B, C], by ``igdm.bn``: one forward with S(x'), or after all those of L_AD."""
        if self.config.igdm.bn == "concat":
            student_plus, student_minus = one_forward(model, x_adv, x_minus)
            return self.distil(model, batch, x_adv, student_plus), student_minus
        distilled = self.distil(model, batch, x_adv)
        return distilled, model(x_minus) if self.config.igdm.bn == "two" else frozen_forward(model, x_minus)


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
            raise LtatError(f"kd.extra_forwards=true runs S four times and igdm.bn={config.igdm.bn} not; drop one")

    def distil_and_mirror(
        self, model: nn.Module, batch: Batch, x_adv: Tensor, x_minus: Tensor
    ) -> tuple[Distilled, Tensor]:
        """With ``kd.extra_forwards`` L_AD takes S(x') [B, C] from the last forward, L_IGDM from the first."""
        if not self.config.kd.extra_forwards:
            return super().distil_and_mirror(model, batch, x_adv, x_minus)
        student_plus = model(x_adv)
        with torch.no_grad():
            model(batch.images)
        student_minus = model(x_minus)
        return self.distil(model, batch, x_adv)._replace(student_adv=student_plus), student_minus


def mirrored(x: Tensor, x_adv: Tensor, box: tuple[float, float] | None = None) -> Tensor:
    """x - delta [B, C, H, W], which leaves [0, 1] at places unless clamped to ``box``."""
    x_minus = x - (x_adv - x)
    return x_minus if box is None else x_minus.clamp(*box)


def published_alpha(num_classes: int) -> float:
    """IGDM's authors' weight: 1 on CIFAR-10, 10 on CIFAR-100 and Tiny-ImageNet."""
    return 10.0 if num_classes > 10 else 1.0


def ramp(progress: Progress, kind: str, length: int | None = None) -> float:
    """w(e): 1, or rising linearly to 1 over ``length`` epochs (the whole run when left out)."""
    if kind == "none":
        return 1.0
    return min(1.0, progress.epoch / (length or progress.epochs))
