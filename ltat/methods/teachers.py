"""The common part of the methods that learn from a teacher: where the teacher comes from, and its logits.

A teacher is a saved model (``teacher.path``, ``--teacher``), a torch module passed to :func:`ltat.training.train`, or,
with ``teacher.train="balanced"``, a network that is trained first, by plain adversarial training on the balanced
sub-dataset D_B: the self-teacher of Cho, Lee and Kim (ICLR 2025). With ``teacher.train="ema"`` it is the moving average
of the weights that the run trains, which needs no stage of its own (as in ADR; Wu, Wang, Chen; ICLR 2024).
"""

from typing import Any, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from ltat.attacks import Objective
from ltat.config import (
    AugmentSection,
    AverageSection,
    AwpSection,
    Decided,
    ModelSection,
    RunConfig,
    ScheduleSection,
    Section,
    left_out,
    named_epoch,
)
from ltat.config.sections import Count, Epochs, FilePath, NonNegative, Tree
from ltat.engine.precision import dtype_of
from ltat.engine.tracing import Untraceable
from ltat.engine.trial import tried_copy
from ltat.engine.working_copy import FrozenCopy
from ltat.errors import LtatError
from ltat.methods.base import Method
from ltat.methods.objectives import inner_objective
from ltat.methods.pgd_at import PgdAtConfig
from ltat.methods.step import Step
from ltat.models import Classifier


class TeacherSection(Section):
    """The teacher: a checkpoint, or a network that is trained on D_B first."""

    path: FilePath | None = None
    """The teacher's checkpoint, or another project's `.pt` of the network `teacher.model`; `--teacher` sets it."""
    classes_by_name: bool = False
    """Whether the teacher's outputs are permuted where its class names are the data's in another order."""
    train: Literal["balanced", "ema", "none"] = "balanced"
    """`balanced` trains one on D_B first, unless `teacher.path` names one; `ema`: the student's own average; `none`."""
    model: Decided[str] = left_out()
    """Architecture of the teacher that is trained or read from a `.pt`; left out, the student's."""
    normalize: Literal["file", "cifar10", "cifar100"] = "file"
    """How a teacher from a `.pt` normalises images: by what its `file` holds, or by the constants of RobustBench."""
    epochs: Epochs = 30
    """Epochs of the teacher stage."""
    batch_size: Count = 32
    """Images in a batch of the teacher stage."""
    base_lr: NonNegative = 0.1
    """Learning rate of the teacher stage at its start."""
    schedule: ScheduleSection = ScheduleSection()
    """Learning rate of the teacher stage over its epochs, as the section `schedule`."""
    average: AverageSection = AverageSection()
    """The average of the teacher stage's weights, as the section `average`; where it is on, it is the teacher."""
    awp: AwpSection = AwpSection()
    """Adversarial weight perturbation in the teacher stage, as the section `awp`."""
    ckpt: Literal["last", "best"] = "last"
    """The teacher's weights: those of the `last` epoch or of the `best` one."""
    mode: Literal["eval", "train"] = "eval"
    """The teacher's mode while the student trains: `eval` or `train`."""
    aug: Literal["same", "none"] = "same"
    """Augmentation of the teacher stage: `same` as the student's, or `none`."""
    precision: Literal["train", "fp32"] = "train"
    """Precision of a teacher in mode `eval`: `train` (that of the training) or `fp32`."""

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        if self.average.raw:
            raise LtatError("teacher.average.raw=true would report two teachers and a run has one; leave it out")
        return self


class TaughtConfig(RunConfig):
    """The settings of a method with a teacher."""

    teacher: TeacherSection = TeacherSection()

    def by_method(self, num_classes: int) -> Tree:
        """The architecture of the teacher stage: the student's."""
        return super().by_method(num_classes) | {"teacher.model": self.model.name}


def teacher_settings(config: RunConfig) -> TeacherSection | None:
    """The settings of the teacher, or ``None`` for a method without one."""
    return config.teacher if isinstance(config, TaughtConfig) else None


class TaughtMethod(Method):
    """Base of the methods with a teacher T, which is frozen and in the mode ``teacher.mode``.

    In evaluation mode T runs in the precision of the training, as ``working_teacher``: a working copy, as attacks use
    it, with its last layer and its logits in fp32. A teacher that cannot be copied runs in fp32, because autocast would
    also round the last layer of a foreign network, and IGDM takes differences of logits. The copy takes over T's
    weights at the start of every epoch: a method that changes T within an epoch needs ``teacher.precision=fp32``. The
    student's own average, ``teacher.train=ema``, changes with every step and so runs as itself, in fp32.
    """

    config: TaughtConfig
    teacher: nn.Module

    def __init__(self, config: TaughtConfig, class_counts: Tensor, teacher: nn.Module | None = None) -> None:
        if config.teacher.train == "ema":
            check_own_average(config)
            teacher = teacher or nn.Identity()  # until take_average
        teacher = require_teacher(teacher, class_counts, config.method)
        super().__init__(config, class_counts, teacher)
        self.teacher.train(config.teacher.mode == "train")
        self._copy: FrozenCopy | Untraceable | None = None
        if config.teacher.ckpt == "best" and config.select.set == "none":
            raise LtatError("teacher.ckpt=best needs a selection and select.set is none; use teacher.ckpt=last")

    @classmethod
    def teacher_config(cls, config: RunConfig) -> PgdAtConfig | None:
        """The settings of the balanced self-teacher's stage, where ``teacher.train`` is ``"balanced"``."""
        assert isinstance(config, TaughtConfig)
        return balanced_teacher(config) if config.teacher.train == "balanced" else None

    def take_average(self, average: Classifier) -> None:
        """Learn from the average, where ``teacher.train`` is ``"ema"``."""
        super().take_average(average)
        if self.config.teacher.train == "ema":
            self.teacher = average

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None}  # belongs to the teacher of the original

    def working_teacher(self, images: Tensor) -> nn.Module:
        """The module that computes T's logits of such images: the copy in the training's precision, or T itself."""
        if self._kept_exact():
            return self.teacher
        if self._copy is None or (isinstance(self._copy, FrozenCopy) and not self._copy.work.fits):
            self._copy = self._new_copy(images)
        return self._copy if isinstance(self._copy, FrozenCopy) else self.teacher

    def _new_copy(self, images: Tensor) -> FrozenCopy | Untraceable:
        try:
            return FrozenCopy(tried_copy(self.teacher, images, dtype_of(self.config.train.precision)))
        except Untraceable as why:
            return why

    def _kept_exact(self) -> str | None:
        """The setting that makes T itself compute the logits, or ``None``."""
        if self.config.train.precision == "fp32":
            return "train.precision=fp32"
        if self.config.teacher.precision == "fp32":
            return "teacher.precision=fp32"
        if self.config.teacher.train == "ema":
            return "teacher.train=ema"
        return "teacher.mode=train" if self.teacher.training else None

    def remarks(self, images: Tensor) -> tuple[str, ...]:
        """A line on how T runs."""
        network = self.working_teacher(images)
        if isinstance(network, FrozenCopy):
            return (f"teacher runs as {network.work}",)
        return (f"teacher runs as the network itself: {self._kept_exact() or self._copy}",)

    def begin_epoch(self, epoch: int) -> None:
        """Refresh the copy, in case T's weights have changed."""
        super().begin_epoch(epoch)
        if isinstance(self._copy, FrozenCopy):
            self._copy.work.refresh()

    def objective(self, step: Step) -> Objective:
        """``attack.loss``; where it compares with T, it uses :attr:`working_teacher`."""
        prior, teacher = self.tau * step.log_prior, self.working_teacher(step.batch.images)
        return inner_objective(self.config.attack.loss, step.model, step.batch, prior, teacher)

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor:
        """T's fp32 logits [B, C] of ``images`` [B, ch, H, W], without gradient; a loss gives them to ``step.whole``."""
        logits: Tensor = self.working_teacher(images)(images)
        return logits.float()

    def teacher_logits_of(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """:meth:`teacher_logits` of several batches [B, ch, H, W], in one forward unless batch norm would mix them."""
        if self.teacher.training:
            return tuple(self.teacher_logits(images) for images in inputs)
        return self.teacher_logits(torch.cat(inputs)).chunk(len(inputs))


def balanced_teacher(config: TaughtConfig) -> PgdAtConfig:
    """Plain adversarial training on D_B; what the section ``teacher`` does not set is the student's."""
    teacher = config.teacher
    return PgdAtConfig(
        data=config.data.model_copy(update={"sampling": "balanced"}),
        db=config.db,
        aug=config.aug if teacher.aug == "same" else AugmentSection(pad=0, flip=False),
        loader=config.loader,
        model=ModelSection(name=teacher.model, normalize=config.model.normalize),
        attack=config.attack.model_copy(update={"loss": "ce"}),
        awp=teacher.awp,
        optim=config.optim.model_copy(update={"lr": teacher.base_lr}),
        schedule=teacher.schedule,
        train=config.train.model_copy(update={"epochs": teacher.epochs, "batch_size": teacher.batch_size}),
        average=teacher.average,
        select=config.select if teacher.ckpt == "best" else config.select.model_copy(update={"set": "none"}),
        eval=config.eval.model_copy(update={"tau": 0.0}),  # D_B has no prior to take back
        seed=config.seed,
    )


def check_own_average(config: TaughtConfig) -> None:
    """Check that the run has an average that can teach from the first step on.

    Raises:
        LtatError: it has none, or one that begins later, or another teacher is named.
    """
    average, teacher = config.average, config.teacher
    if average.kind != "ema":
        raise LtatError(f"teacher.train=ema needs average.kind=ema and it is {average.kind}; set it to ema")
    if named_epoch(average.start, config.train.epochs) > 1:
        raise LtatError(
            f"teacher.train=ema teaches from the first epoch and average.start={average.start:g}; set it to 0"
        )
    if teacher.path is not None:
        raise LtatError(f"teacher.train=ema and teacher.path={teacher.path} name two teachers; leave one out")
    if teacher.mode == "train":
        raise LtatError("teacher.train=ema needs teacher.mode=eval and it is train; leave teacher.mode out")


def require_teacher(teacher: nn.Module | None, class_counts: Tensor, method: str) -> nn.Module:
    """The teacher, frozen, after checking that it exists and has the right number of classes.

    Raises:
        LtatError: no teacher, or one with another number of classes.
    """
    if teacher is None:
        raise LtatError(
            f"method {method!r} distils from a teacher and none was given; "
            "name one with --teacher, or train one first with teacher.train=balanced"
        )
    classes = teacher.num_classes if isinstance(teacher, Classifier) else len(class_counts)
    if classes != len(class_counts):
        raise LtatError(f"the teacher has {classes} classes and the data {len(class_counts)}; choose another teacher")
    return teacher.requires_grad_(False)
