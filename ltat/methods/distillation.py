"""What adversarial distillation methods share (ARD, RSLAD, AdaAD): a teacher, an attack, a divergence L_AD."""

from typing import NamedTuple

from torch import Tensor, nn

from ltat.attacks import ThreatModel
from ltat.config import RunConfig, Section
from ltat.data import Batch
from ltat.methods.base import LossTerms, Progress
from ltat.methods.divergences import Reduction
from ltat.methods.teachers import TaughtConfig, TaughtMethod, TeacherSection


class KdSection(Section):
    """How the divergence from the teacher is averaged, and over what ball the training attack runs."""

    reduction: Reduction | None = None
    """Mean of the divergence: `batchmean`, `elementmean`, `10xelementmean` or `sum`; left out, the reference code's."""
    swap_step_eps: bool = False
    """Whether the training attack takes step ε and radius `attack.step_size`, the mistake of the SAAD repository."""


class DistillationConfig(TaughtConfig):
    """Settings of the distillation methods; their papers' teachers are given, not trained."""

    teacher: TeacherSection = TeacherSection(train="none")
    kd: KdSection = KdSection()


class Distilled(NamedTuple):
    """L_AD (0-dim), S(x') with its graph [B, C], and L_AD's parts by name (0-dim, detached)."""

    loss: Tensor
    student_adv: Tensor
    parts: dict[str, Tensor]


class Distillation(TaughtMethod):
    """Base of the distillation methods; a subclass implements :meth:`distil`, the paper's loss."""

    config: DistillationConfig

    @classmethod
    def resolve(cls, config: RunConfig, num_classes: int) -> RunConfig:
        """Fill the reduction that the number of classes decides."""
        assert isinstance(config, DistillationConfig)
        reduction = config.kd.reduction or cls.published_reduction(num_classes)
        return config.model_copy(update={"kd": config.kd.model_copy(update={"reduction": reduction})})

    @staticmethod
    def published_reduction(num_classes: int) -> Reduction:
        """The mean that the reference code takes of the divergence."""
        raise NotImplementedError

    @property
    def reduction(self) -> Reduction:
        """The mean in use."""
        return self.config.kd.reduction or self.published_reduction(len(self.class_counts))

    def training_ball(self) -> tuple[ThreatModel, float]:
        """The right ball and step, or with ``kd.swap_step_eps`` the two exchanged."""
        threat, step = super().training_ball()
        if not self.config.kd.swap_step_eps:
            return threat, step
        return ThreatModel(norm=threat.norm, eps=step), self.config.attack.eps

    def distil(self, model: nn.Module, batch: Batch, x_adv: Tensor, student_adv: Tensor | None = None) -> Distilled:
        """L_AD of the clean images in ``batch`` and the adversarial ``x_adv`` [B, C, H, W].

        ``student_adv`` is S(x') [B, C], where it is known already.
        """
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, progress: Progress) -> LossTerms:
        """L_AD, and its parts."""
        del progress
        distilled = self.distil(model, batch, x_adv)
        return LossTerms(distilled.loss, distilled.student_adv.detach(), distilled.parts)
