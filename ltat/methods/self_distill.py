"""Long-tailed adversarial training with self-distillation (Cho, Lee, Kim; ICLR 2025; arXiv 2503.06461).

Stage 1 trains a balanced self-teacher T on D_B by plain adversarial training (:mod:`ltat.methods.pgd_at`).
Stage 2 trains the student S on the long-tailed D:

    x'   = PGD-10 on CE( S(x'), y ),  delta = x' - x
    L    = L_BSL + alpha * rho(e) * L_KD
    L_BSL = mean CE( S(x') + tau * log n, y )
    L_KD  = KL( softmax(T(x+delta) - T(x-delta)) || softmax(S(x+delta) - S(x-delta)) )        (IGDM, eq. 8)

This is an independent reconstruction. The paper names the distillation of Lee et al. and a weight alpha, but the text
that we have does not contain its Algorithm 1, and the authors' code is a supplement that we have not seen. L_KD, alpha
and the ramp rho(e) = e/E are those of Lee et al.'s IGDM (arXiv 2312.03286). Every choice is a setting below, and
docs/methods/self-distill.md lists the evidence for each. With ``teacher.train="ema"`` there is no stage 1, and T is the
moving average of S. ``kd.target_tau`` makes the targets of the KL forms softmax(T - tau_t log n). ``loss.cls`` replaces
L_BSL by another loss.
"""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltat.config import Decided, LossSection, Section, left_out
from ltat.config.sections import NonNegative, Tree
from ltat.errors import LtatError
from ltat.methods.classification import ClassificationConfig, ClassificationMethod
from ltat.methods.igdm import IgdmSection, mirrored, published_alpha, student_on_both, student_plus, weight_of
from ltat.methods.step import LossTerms, Step
from ltat.methods.teachers import TaughtConfig, TaughtMethod
from ltat.models import Classifier
from ltat.ops import BalancedKD, balanced_kd

TEACHER_INPUTS = {
    "igdm": ("adv", "minus"),
    "kl_adv": ("adv",),
    "kl_clean": ("clean",),
    "kl_adv+igdm": ("adv", "minus"),
}
"""The inputs of the teacher in each form of L_KD: x' ("adv"), x - delta ("minus"), x ("clean")."""


class DistillSection(IgdmSection):
    """The distillation term of the main method, a reconstruction (docs/methods/self-distill.md)."""

    form: Literal["igdm", "kl_adv", "kl_clean", "kl_adv+igdm"] = "igdm"
    """The term: `igdm`, `kl_adv` (KL on x'), `kl_clean` (KL on x) or `kl_adv+igdm`."""
    alpha: Decided[NonNegative] = left_out()
    """Weight α of the term; left out, 1, or 10 for `igdm` above ten classes."""
    reduction: Literal["batchmean", "elementmean"] = "batchmean"
    """Mean of the divergence: `batchmean` or `elementmean`."""
    mix: Literal["additive", "convex"] = "additive"
    """`additive` (L_BSL + w L_KD) or `convex` ((1 − w) L_BSL + w L_KD, w at most 1)."""
    on_biased: bool = False
    """Whether the divergence compares logits with the prior τ log n added; matters for the KL forms only."""
    target_tau: NonNegative = 0.0
    """τ_t of the targets softmax(T − τ_t log n) of the KL forms: how much of the prior is taken off T's logits."""


class StudentSection(Section):
    """The initial weights of the student."""

    init: Literal["scratch", "teacher"] = "scratch"
    """`scratch` (random weights) or `teacher` (the teacher's weights)."""


class SelfDistillConfig(ClassificationConfig, TaughtConfig):
    """The settings that the paper states, and the reconstruction's defaults for the others."""

    method: Literal["self-distill"] = "self-distill"
    loss: LossSection = LossSection(cls="bsl")
    kd: DistillSection = DistillSection()
    student: StudentSection = StudentSection()

    def by_method(self, num_classes: int) -> Tree:
        """The teacher's architecture, and the weight of the distillation term."""
        alpha = published_alpha(num_classes) if self.kd.form == "igdm" else 1.0
        return super().by_method(num_classes) | {"kd.alpha": alpha}


class SelfDistill(ClassificationMethod, TaughtMethod):
    """Balanced softmax plus distillation from the balanced self-teacher."""

    Config = SelfDistillConfig
    config: SelfDistillConfig

    def __init__(self, config: SelfDistillConfig, class_counts: Tensor, teacher: nn.Module | None = None) -> None:
        super().__init__(config, class_counts, teacher)
        if config.kd.mix == "convex" and config.kd.alpha > 1:
            raise LtatError(f"kd.mix=convex needs kd.alpha in [0, 1] and it is {config.kd.alpha:g}; lower kd.alpha")
        if config.kd.on_biased and not self.chosen.in_balanced_kd:
            raise LtatError(f"kd.on_biased needs loss.cls=bsl and it is {config.loss.cls}; leave kd.on_biased out")
        if config.kd.target_tau and config.kd.form == "igdm":
            raise LtatError("kd.target_tau cancels in kd.form=igdm, which takes differences; leave it out")
        if config.student.init == "teacher" and config.teacher.train == "ema":
            raise LtatError(
                "student.init=teacher needs a teacher before the student and teacher.train=ema has none; leave one out"
            )
        if config.student.init == "teacher" and config.model.weights is not None:
            raise LtatError(
                f"student.init=teacher and model.weights={config.model.weights} both set the start; leave one out"
            )

    def initialise(self, model: Classifier) -> None:
        """Start from the teacher's weights where ``student.init`` says so."""
        if self.config.student.init == "teacher":
            try:
                model.load_state_dict(self.teacher.state_dict())
            except RuntimeError:
                raise LtatError("student.init=teacher needs a teacher of the student's layers; leave it out") from None

    def loss(self, step: Step) -> LossTerms:
        """L_BSL + alpha * rho(e) * L_KD."""
        weight = weight_of(self.config.kd, step)
        student, compared = self.logits(step)
        terms = self.terms(step, weight, student, compared)
        logs = {"cls": terms.cls, "kd": terms.kd, "kd_ratio": weight * terms.kd / terms.cls}
        return LossTerms(terms.loss, student, logs)

    def logits(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """S(x') [B, C], and the other logits that ``kd.form`` compares, by their names in ``balanced_kd``."""
        kd, inputs = self.config.kd, TEACHER_INPUTS[self.config.kd.form]
        images = {"adv": step.x_adv, "minus": mirrored(kd, step), "clean": step.batch.images}
        compared = {}
        if "minus" in inputs:
            plus = partial(student_plus, step)
            student, compared["student_minus"] = student_on_both(kd, step, images["minus"], plus)
        else:
            student = student_plus(step)
        teacher = map(step.whole, self.teacher_logits_of(*(images[name] for name in inputs)))
        prior = kd.target_tau * step.log_prior if kd.target_tau else None
        targets = (z if prior is None else z - prior for z in teacher)
        return student, compared | {f"teacher_{name}": z for name, z in zip(inputs, targets, strict=True)}

    def terms(self, step: Step, weight: float, student: Tensor, compared: dict[str, Tensor]) -> BalancedKD:
        """The loss and its two terms, in one pass where the kernel computes both."""
        settings, labels, prior = self.config.kd, step.batch.labels, self.tau * step.log_prior
        kd: dict[str, Any] = {
            **compared,
            "form": settings.form,
            "kd_weight": weight,
            "temperature": settings.temp,
            "reduction": settings.reduction,
            "on_biased": settings.on_biased,
        }
        cls_weight = 1.0 - weight if settings.mix == "convex" else 1.0
        if self.chosen.in_balanced_kd and not self.config.loss.smoothing:
            return balanced_kd(student, labels, prior, cls_weight=cls_weight, **kd)
        added = prior if self.chosen.in_balanced_kd else torch.zeros_like(prior)
        distilled = balanced_kd(student, labels, added, cls_weight=0.0, **kd)
        cls = self.classification(student, step)
        return BalancedKD(cls_weight * cls + distilled.loss, cls.detach(), distilled.kd)
