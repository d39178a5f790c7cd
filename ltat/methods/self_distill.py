"""Long-tailed adversarial training with self-distillation (Cho, Lee, Kim; ICLR 2025; arXiv 2503.06461).

Stage 1 trains a balanced self-teacher T on D_B by plain adversarial training (:mod:`ltat.methods.pgd_at`).
Stage 2 trains the student S on the long-tailed D:

    x'   = PGD-10 on CE( S(x'), y ),  delta = x' - x
    L    = L_BSL + alpha * rho(e) * L_KD
    L_BSL = mean CE( S(x') + tau * log n, y )
    L_KD  = KL( softmax(T(x+delta) - T(x-delta)) || softmax(S(x+delta) - S(x-delta)) )        (IGDM, eq. 8)

An independent reconstruction: the paper names the distillation of Lee et al. and a weight alpha, but the text that we
have is without its Algorithm 1, and the authors' code is a supplement that we have not seen. L_KD, alpha and the ramp
rho(e) = e/E are taken from Lee et al.'s IGDM (arXiv 2312.03286); every choice is a setting below, and
docs/methods/self-distill.md lists the evidence for each. ``loss.cls`` puts another loss in place of L_BSL.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from ltat.config import LossSection, RunConfig, Section
from ltat.config.sections import Count, NonNegative, Positive
from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods.base import LossTerms, Progress
from ltat.methods.classification import ClassificationConfig, ClassificationMethod
from ltat.methods.igdm import mirrored, published_alpha, ramp
from ltat.methods.student_forwards import STUDENT_FORWARDS
from ltat.methods.teachers import TaughtConfig, TaughtMethod
from ltat.models import Classifier
from ltat.ops import BalancedKD, balanced_kd

TEACHER_INPUTS = {
    "igdm": ("adv", "minus"),
    "kl_adv": ("adv",),
    "kl_clean": ("clean",),
    "kl_adv+igdm": ("adv", "minus"),
}
"""Which images each form of L_KD shows the teacher: x' ("adv"), x - delta ("minus"), x ("clean")."""


class DistillSection(Section):
    """The distillation term of the main method, a reconstruction (docs/methods/self-distill.md)."""

    form: Literal["igdm", "kl_adv", "kl_clean", "kl_adv+igdm"] = "igdm"
    """The term: `igdm`, `kl_adv` (KL on x'), `kl_clean` (KL on x) or `kl_adv+igdm`."""
    alpha: NonNegative | None = None
    """Weight α of the term; left out, 1, and for `igdm` above ten classes 10."""
    ramp: Literal["linear", "none"] = "linear"
    """`linear` (the weight rises from 0 as e/E over the epochs) or `none`."""
    ramp_len: Count | None = None
    """Epochs over which the weight rises; left out, all (the authors' code: 200)."""
    temp: Positive = 1.0
    """Temperature of the divergence, above 0."""
    reduction: Literal["batchmean", "elementmean"] = "batchmean"
    """Mean of the divergence: `batchmean` or `elementmean`."""
    bn: Literal["two", "concat", "freeze_minus"] = "two"
    """Forwards of S: `two`, `concat` (x + δ and x − δ as one batch) or `freeze_minus` (x − δ moves no statistics)."""
    clamp_minus: bool = False
    """Whether x − δ is clamped to the box; the authors' code does not."""
    mix: Literal["additive", "convex"] = "additive"
    """`additive` (L_BSL + w L_KD) or `convex` ((1 − w) L_BSL + w L_KD, w at most 1)."""
    on_biased: bool = False
    """Whether the divergence is of logits with the prior τ log n added; matters for the KL forms only."""


class StudentSection(Section):
    """Where the student starts."""

    init: Literal["scratch", "teacher"] = "scratch"
    """`scratch` (random weights) or `teacher` (the teacher's)."""


class SelfDistillConfig(ClassificationConfig, TaughtConfig):
    """The settings of the paper where it states them, else the reconstruction's defaults."""

    method: Literal["self-distill"] = "self-distill"
    loss: LossSection = LossSection(cls="bsl")
    kd: DistillSection = DistillSection()
    student: StudentSection = StudentSection()


class SelfDistill(ClassificationMethod, TaughtMethod):
    """Balanced softmax plus distillation from the balanced self-teacher."""

    Config = SelfDistillConfig
    config: SelfDistillConfig

    def __init__(self, config: SelfDistillConfig, class_counts: Tensor, teacher: nn.Module | None = None) -> None:
        super().__init__(config, class_counts, teacher)
        self.alpha = self.resolve(config, len(class_counts)).kd.alpha or 0.0
        if config.kd.mix == "convex" and self.alpha > 1:
            raise LtatError(f"kd.mix=convex needs kd.alpha in [0, 1] and it is {self.alpha:g}; lower kd.alpha")
        if config.kd.on_biased and not self.chosen.in_balanced_kd:
            raise LtatError(f"kd.on_biased adds the prior of loss.cls=bsl and loss.cls is {config.loss.cls}; drop it")
        if config.student.init == "teacher" and config.model.weights is not None:
            raise LtatError(f"student.init=teacher and model.weights={config.model.weights} name two starts; drop one")

    @classmethod
    def resolve(cls, config: RunConfig, num_classes: int) -> "SelfDistillConfig":
        """Fill the weight alpha that the number of classes decides."""
        assert isinstance(config, SelfDistillConfig)
        if config.kd.alpha is not None:
            return config
        alpha = published_alpha(num_classes) if config.kd.form == "igdm" else 1.0
        return config.model_copy(update={"kd": config.kd.model_copy(update={"alpha": alpha})})

    def initialise(self, model: Classifier) -> None:
        """Start from the teacher's weights where ``student.init`` says so."""
        if self.config.student.init == "teacher":
            try:
                model.load_state_dict(self.teacher.state_dict())
            except RuntimeError:
                raise LtatError("student.init=teacher needs a teacher with the student's layers; drop it") from None

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, progress: Progress) -> LossTerms:
        """L_BSL + alpha * rho(e) * L_KD for ``x_adv`` [B, C, H, W]."""
        kd = self.config.kd
        images = {"adv": x_adv, "minus": self.mirrored(batch.images, x_adv), "clean": batch.images}
        inputs = TEACHER_INPUTS[kd.form]
        s_plus, s_minus = self._student_logits(model, x_adv, images["minus"] if "minus" in inputs else None)
        taught = self.teacher_logits_of(*(images[name] for name in inputs))
        weight = self.alpha * ramp(progress, kd.ramp, kd.ramp_len)
        terms = self._terms(
            s_plus,
            batch.labels,
            progress,
            form=kd.form,
            student_minus=s_minus,
            **{f"teacher_{name}": logits for name, logits in zip(inputs, taught, strict=True)},
            cls_weight=1.0 - weight if kd.mix == "convex" else 1.0,
            kd_weight=weight,
            temperature=kd.temp,
            reduction=kd.reduction,
            on_biased=kd.on_biased,
        )
        ratio = weight * terms.kd / terms.cls
        return LossTerms(terms.loss, s_plus.detach(), {"cls": terms.cls, "kd": terms.kd, "kd_ratio": ratio})

    def _terms(self, logits: Tensor, labels: Tensor, progress: Progress, *, cls_weight: float, **kd: Any) -> BalancedKD:
        """The classification term and the one of distillation, in one pass where the kernel has both."""
        if self.chosen.in_balanced_kd:
            return balanced_kd(logits, labels, self.log_prior, cls_weight=cls_weight, **kd)
        distilled = balanced_kd(logits, labels, torch.zeros_like(self.log_prior), cls_weight=0.0, **kd)
        cls = self.classification(logits, labels, progress)
        return BalancedKD(cls_weight * cls + distilled.loss, cls.detach(), distilled.kd)

    def mirrored(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """x - delta, which leaves [0, 1] at places unless ``kd.clamp_minus`` is set (IGDM's code does not clamp)."""
        return mirrored(x, x_adv, self.threat.box if self.config.kd.clamp_minus else None)

    def _student_logits(self, model: nn.Module, x_plus: Tensor, x_minus: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """S(x+delta) and S(x-delta), by ``kd.bn``: two batches for batch norm, one, or the second without a trace."""
        if x_minus is None:
            return model(x_plus), None
        return STUDENT_FORWARDS[self.config.kd.bn](model, x_plus, x_minus)
