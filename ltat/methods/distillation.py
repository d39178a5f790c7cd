"""The common part of the adversarial distillation methods (ARD, RSLAD, AdaAD): teacher, attack, divergence L_AD."""

from torch import Tensor

from ltat.attacks import ThreatModel
from ltat.config import Decided, Section, left_out
from ltat.methods.attacking import training_attack
from ltat.methods.divergences import Reduction
from ltat.methods.step import LossTerms, Step
from ltat.methods.teachers import TaughtConfig, TaughtMethod, TeacherSection


class KdSection(Section):
    """How the divergence from the teacher is averaged, and in which ball the training attack runs."""

    reduction: Decided[Reduction] = left_out()
    """Mean of the divergence: `batchmean`, `elementmean`, `10xelementmean` or `sum`; left out, the reference code's."""
    swap_step_eps: bool = False
    """Whether the training attack swaps radius and step size, a mistake in the SAAD repository."""


class DistillationConfig(TaughtConfig):
    """Settings of the distillation methods; the teachers of their papers are given checkpoints."""

    teacher: TeacherSection = TeacherSection(train="none")
    kd: KdSection = KdSection()


class Distillation(TaughtMethod):
    """Base of the distillation methods; a subclass implements :meth:`distil`, the paper's loss."""

    config: DistillationConfig

    def attack(self, step: Step) -> Tensor:
        """PGD; with ``kd.swap_step_eps`` the radius is the step size and the step is the radius."""
        attack = self.config.attack
        if not self.config.kd.swap_step_eps:
            return super().attack(step)
        swapped = ThreatModel(norm=attack.norm, eps=attack.step_size)
        return training_attack(step, self.config, self.objective, swapped, step_size=attack.eps)

    def distil(self, step: Step, student_adv: Tensor | None = None) -> LossTerms:
        """L_AD and its parts; ``student_adv`` is S(x') [B, C] where it is already computed."""
        raise NotImplementedError

    def loss(self, step: Step) -> LossTerms:
        """L_AD and its parts."""
        return self.distil(step)
