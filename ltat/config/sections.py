"""Every setting of a run, typed, with the defaults the field shares.

A training method adds sections of its own, or other defaults, by subclassing :class:`RunConfig`; see
:mod:`ltat.methods`. A setting left out (``None``) is filled from the data set when the run starts, and the
resolved configuration is saved with the run.
"""

import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ltat.errors import LtatError
from ltat.units import MAX_EPOCHS, MAX_STEPS, check_image_size, check_length, check_ratio

Tree = dict[str, Any]


def read_quotient(value: object) -> object:
    """Read ``"8/255"`` as the quotient, as the field writes radii; anything else passes through."""
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            return value
    return value


Quotient = Annotated[float, BeforeValidator(read_quotient), Field(allow_inf_nan=False)]
NonNegative = Annotated[Quotient, Field(ge=0)]
Positive = Annotated[Quotient, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Epochs = Annotated[Count, Field(le=MAX_EPOCHS)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what every generator in use takes


def passing(check: Callable[[str, Any], None], name: str) -> AfterValidator:
    """A validator that keeps the value ``check(name, value)`` lets pass."""

    def keep(value: Any) -> Any:
        check(name, value)
        return value

    return AfterValidator(keep)


Ratio = Annotated[Quotient, passing(check_ratio, "data.imbalance_ratio")]
ImageSize = Annotated[int, passing(check_image_size, "data.image_size")]


def named_epoch(when: float, epochs: int) -> int:
    """The epoch that a setting names: up to 1 a share of the epochs, above 1 an epoch.

    A share is rounded down (1e-9 keeps 0.29 of 100 from becoming 28).
    """
    return int(when * epochs + 1e-9) if when <= 1 else int(when)


def plain(value: object) -> object:
    """A path as text, and what NumPy or torch holds as Python's own numbers; anything else passes through."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    tolist = getattr(value, "tolist", None)
    return value if tolist is None else tolist()


class Section(BaseModel):
    """A group of settings: unknown names are errors, values never change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def over(cls, below: Tree, given: Mapping[str, Any]) -> Tree:
        """``given`` on top of ``below``, two trees of this section's settings; neither is changed."""
        tree = dict(below)
        for name, value in given.items():
            kind, standing = cls.section(name), below.get(name, {})
            nested = kind is not None and isinstance(value, dict) and isinstance(standing, dict)
            tree[name] = kind.over(standing, value) if kind and nested else value
        return tree

    @classmethod
    def section(cls, name: str) -> "type[Section] | None":
        """The class of the section called ``name``, or ``None`` where that is no section."""
        field = cls.model_fields.get(name)
        kind = None if field is None else field.annotation
        return kind if isinstance(kind, type) and issubclass(kind, Section) else None

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, given: Any) -> Any:
        # A method's section default, such as its milestones, must outlive a change of that section's other settings.
        if not isinstance(given, dict):
            return given
        given = {name: plain(value) for name, value in given.items()}
        defaults = {name: cls.model_fields[name].default for name in given if name in cls.model_fields}
        below = {
            name: default.model_dump(exclude_unset=True, by_alias=True)
            for name, default in defaults.items()
            if isinstance(default, Section) and isinstance(given[name], dict)
        }
        return cls.over(below, given)


class DataSection(Section):
    """Which images, and which long-tailed subset of them (docs/data.md)."""

    name: str = "cifar10"
    dir: str | None = None
    image_size: ImageSize | None = None
    channels: Literal[1, 3] | None = None
    train_list: str | None = None
    test_list: str | None = None
    imbalance_ratio: Ratio | Literal["natural"] | None = None
    imbalance: Literal["exp", "step"] = "exp"
    class_order: str = "label"
    split_file: str | None = None
    download: bool = False
    sampling: str = "natural"
    plan_file: str | None = None


class BalancedSection(Section):
    """The balanced sub-dataset D_B: gamma * n_min images of every class (Cho, Lee, Kim, ICLR 2025)."""

    gamma: Positive | Literal["ir/2"] = "ir/2"
    resample: Literal["once", "per_epoch"] = "once"
    remainder: Literal["no_replace", "replace"] = "no_replace"
    partial: Annotated[Quotient, Field(ge=0, le=1)] = 1.0


class AugmentSection(Section):
    """A policy, then a random crop after padding by ``pad`` pixels and a flip with probability 1/2, then Cutout."""

    pad: Natural | None = None
    flip: bool | None = None
    pad_mode: Literal["zero", "reflect"] = "zero"
    policy: str = "none"
    ra_ops: Annotated[Count, Field(le=MAX_STEPS)] = 2
    ra_magnitude: Annotated[int, Field(ge=0, le=30)] = 8
    cutout: Natural = 0


class LoaderSection(Section):
    """Where the batches come from; the batches themselves do not depend on it.

    ``auto`` keeps the images on the device where they take at most ``share`` of its free memory, else streams them
    with FFCV where they lie in a .beton file, else reads them through torch. ``workers``, left out, is one less
    than the cores.
    """

    kind: str = "auto"
    workers: Natural | None = None
    share: Annotated[Quotient, Field(gt=0, le=1)] = 0.25


class ModelSection(Section):
    """The network; ``normalize="train"`` puts the training set's mean and deviation inside the model.

    ``weights`` is a saved model to start from; its own mean and deviation then stay inside. Where its classes are those
    of the data in another order, ``classes_by_name`` permutes its outputs.
    """

    name: str = "resnet18"
    normalize: Literal["none", "train"] = "none"
    weights: str | None = None
    classes_by_name: bool = False


LENGTHS = ("eps", "step_size")
"""The settings of the attack that are lengths in its norm."""


class AttackSection(Section):
    """The attack of training, and the threat model that evaluation shares (radii for pixels in [0, 1]).

    With ``fold`` an attack in evaluation mode runs on a copy with batch norm folded away (docs/engine.md). With
    ``final_forward`` one in mode ``train`` ends with a forward of x', which moves the running statistics once more.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: NonNegative = 8 / 255
    steps: Annotated[Natural, Field(le=MAX_STEPS)] = 10
    step_size: NonNegative = 2 / 255
    start: str = "gauss"
    loss: str = "ce"
    mode: Literal["eval", "train", "train_frozen_stats"] = "eval"
    fold: bool = True
    final_forward: bool = False

    @classmethod
    def over(cls, below: Tree, given: Mapping[str, Any]) -> Tree:
        """As every section, but radius and step of ``below`` go with its norm: they are lengths in that."""
        norms = [tree.get("norm", cls.model_fields["norm"].default) for tree in (below, {**below, **given})]
        if norms[0] != norms[1]:
            below = {name: value for name, value in below.items() if name not in LENGTHS}
        return super().over(below, given)

    @model_validator(mode="after")
    def _lengths_of_the_norm(self) -> Self:
        for name in LENGTHS:
            check_length(f"attack.{name}", getattr(self, name), self.norm)
        needed = [name for name in LENGTHS if name != "step_size" or self.steps]
        left_out = [name for name in needed if name not in self.model_fields_set]
        if self.norm != "linf" and left_out:
            raise LtatError(
                f"attack.norm={self.norm} needs {' and '.join(f'attack.{name}' for name in left_out)} in that norm, "
                "and the usual ones are of linf; give for example attack.eps=128/255 and attack.step_size=15/255"
            )
        return self


class OptimSection(Section):
    """Stochastic gradient descent."""

    lr: NonNegative = 0.1
    momentum: Annotated[Quotient, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    wd: Annotated[NonNegative, Field(le=1)] = 5e-4
    wd_skip_bn: bool = False


class ScheduleSection(Section):
    """The learning rate over epochs.

    A milestone below or equal to 1 is a share of the run's epochs, so that a shortened run keeps the shape;
    one above 1 is an epoch. With ``milestone_base = 1`` the rate drops *in* that epoch (the first is 1), with 0
    after that many completed epochs.
    """

    kind: str = "multistep"
    milestones: tuple[Positive, ...] = (0.75, 0.9)
    milestone_base: Literal[0, 1] = 1
    factor: Annotated[Quotient, Field(gt=0, le=1)] = 0.1
    warmup: Natural = 0


class AverageSection(Section):
    """An average of the weights, which is validated, saved and reported in place of the raw ones.

    ``start`` is a share of the epochs up to 1, above 1 an epoch. ``bn`` says where batch norm's running statistics
    come from: the same average, the raw network, or a pass of the epoch's training images after it.
    """

    kind: Literal["none", "ema", "swa"] = "none"
    decay: Annotated[Quotient, Field(ge=0, lt=1)] = 0.999
    start: NonNegative = 0.0
    bn: Literal["average", "copy", "recompute"] = "average"


class TrainSection(Section):
    """Length, batches, and the machine's side of training.

    ``graph`` replays attack and update as one CUDA graph each; it has not run on a GPU yet (docs/engine.md).
    """

    epochs: Epochs = 100
    batch_size: Count = 128
    drop_last: bool = True
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: str = "auto"
    deterministic: bool = False
    compile: bool = False
    graph: bool = False


class SelectSection(Section):
    """How the best checkpoint is chosen.

    ``set="val"`` holds out ``holdout`` of the training images, class by class, and never looks at the test set;
    ``set="test"`` selects on the test set as the papers do, and every report of such a run says so. ``metric``
    is an attack of :func:`ltat.evaluate`; left out, it is PGD-10 on held-out images and PGD-20 on the test set.
    """

    set: Literal["val", "test", "none"] = "val"
    metric: str | None = None
    every: Count = 1
    from_epoch: Count = Field(default=1, alias="from")
    holdout: Annotated[Quotient, Field(gt=0, lt=1)] = 0.05


class EvalSection(Section):
    """The evaluation that ends a run, on the test set; with ``tau`` above 0 its logits are z - tau * log(n / N).

    The best checkpoint is then chosen by them too.
    """

    attacks: tuple[str, ...] = ("clean", "pgd20")
    n_examples: Count | None = None
    batch_size: Count = 256
    tau: NonNegative = 0.0


class SeedSection(Section):
    """Seeds of the subset, of D_B (the subset's when left out) and of training, apart from each other."""

    subset: Seed = 0
    db: Seed | None = None
    train: Seed = 0


class BslSection(Section):
    """Balanced softmax: log-prior tau * log n_c added to the logits (Ren et al. 2020; AT-BSL, CVPR 2024)."""

    tau: NonNegative = 1.0


class AwpSection(Section):
    """Adversarial weight perturbation of relative size ``gamma``, 0 without; none in the first ``warmup`` epochs."""

    gamma: Annotated[NonNegative, Field(le=1)] = 0.0
    warmup: Natural = 0


class RadiusSection(Section):
    """The class-wise radius of the training attack (RobustLT): its ``share``, 0 for one radius for all.

    The radii grow from 0 over the first ``ramp_share`` of the epochs; 0 is without that ramp.
    """

    share: Annotated[Quotient, Field(ge=0, le=1)] = 0.0
    ramp_share: Annotated[Quotient, Field(ge=0, le=1)] = 0.0


class LossSection(Section):
    """The classification term on x' (``cls``, see :mod:`ltat.methods.classification`) and its constants.

    ``margin`` (of the rarest class, between cosines), ``scale`` and ``drw`` (the share of the epochs before classes
    are re-weighted) are of LDAM-DRW; ``beta`` is of its weights and of the class-balanced loss, ``gamma`` of the focal.
    """

    cls: str = "ce"
    margin: NonNegative = 0.5
    scale: Positive = 30.0
    drw: Annotated[Quotient, Field(ge=0, le=1)] = 160 / 200
    beta: Annotated[Quotient, Field(ge=0, lt=1)] = 0.9999
    gamma: NonNegative = 2.0


class RunConfig(Section):
    """The settings that every method shares."""

    method: str
    data: DataSection = DataSection()
    db: BalancedSection = BalancedSection()
    aug: AugmentSection = AugmentSection()
    loader: LoaderSection = LoaderSection()
    model: ModelSection = ModelSection()
    attack: AttackSection = AttackSection()
    radius: RadiusSection = RadiusSection()
    awp: AwpSection = AwpSection()
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()
    train: TrainSection = TrainSection()
    average: AverageSection = AverageSection()
    select: SelectSection = SelectSection()
    eval: EvalSection = EvalSection()
    seed: SeedSection = SeedSection()
