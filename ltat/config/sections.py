"""Every setting of a run, typed, with the defaults the field shares.

A training method adds sections or changes defaults by subclassing :class:`RunConfig`; see :mod:`ltat.methods`. A
setting that the data or the method decide if it is left out is :data:`Decided`; :meth:`RunConfig.by_dataset` and
:meth:`RunConfig.by_method` return its value. The complete settings are saved with the run. In them only an optional
file or folder, and an optional change to image files, is ``None``.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ltat.config.decided import Decided, left_out
from ltat.errors import LtatError
from ltat.units import MAX_EPOCHS, MAX_STEPS, check_image_size, check_length, check_ratio

if TYPE_CHECKING:
    from ltat.data import DatasetSpec

Tree = dict[str, Any]


def read_quotient(value: object) -> object:
    """Read ``"8/255"`` as a quotient, as the field writes radii; any other value is returned unchanged."""
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
    """A validator that runs ``check(name, value)`` and keeps the value."""

    def keep(value: Any) -> Any:
        check(name, value)
        return value

    return AfterValidator(keep)


def absolute(path: str) -> str:
    """The absolute path, so that a run finds its files when it is resumed from another folder."""
    return str(Path(path).expanduser().absolute())


FilePath = Annotated[str, AfterValidator(absolute)]
Ratio = Annotated[Quotient, passing(check_ratio, "data.imbalance_ratio")]
TestRatio = Annotated[Quotient, passing(check_ratio, "data.test_imbalance_ratio")]
ImageSize = Annotated[int, passing(check_image_size, "data.image_size")]


def named_epoch(when: float, epochs: int) -> int:
    """The epoch that a setting means: up to 1 a share of all epochs, above 1 an epoch.

    A share is rounded down (1e-9 keeps 0.29 of 100 from becoming 28).
    """
    return int(when * epochs + 1e-9) if when <= 1 else int(when)


def plain(value: object) -> object:
    """A path as text, and values of NumPy or torch as Python numbers; any other value is returned unchanged."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    tolist = getattr(value, "tolist", None)
    return value if tolist is None else tolist()


class Section(BaseModel):
    """A group of settings; unknown names are errors, and values do not change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def over(cls, below: Tree, given: Mapping[str, Any]) -> Tree:
        """``given`` on top of ``below``, two trees of settings; neither is changed."""
        tree = dict(below)
        for name, value in given.items():
            kind, standing = cls.section(name), below.get(name, {})
            nested = isinstance(value, dict) and isinstance(standing, dict)
            tree[name] = (kind or Section).over(standing, value) if nested else value
        return tree

    @classmethod
    def section(cls, name: str) -> "type[Section] | None":
        """The class of the section called ``name``, or ``None`` if ``name`` is not a section."""
        field = cls.model_fields.get(name)
        kind = None if field is None else field.annotation
        return kind if isinstance(kind, type) and issubclass(kind, Section) else None

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, given: Any) -> Any:
        # A change of one setting of a section must keep the method's defaults for the others, such as its milestones.
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
    """The images, and the long-tailed subset of them (docs/data.md)."""

    name: str = "cifar10"
    """The data set, a name that `ltat data` lists: `cifar10`, `cifar100`, `digits`, `imagefolder`, `npz` and others."""
    dir: FilePath | None = None
    """The folder with its files; `digits` needs none."""
    image_size: ImageSize | None = None
    """Side in pixels, 1 to 4096, to which image files are scaled and cropped; left out, image files keep their size."""
    channels: Literal[1, 3] | None = None
    """Channels of image files: 1 (grey) or 3 (RGB); left out, those of the files."""
    train_list: FilePath | None = None
    """For `imagelist`: the text file of training images, a line `PATH LABEL` each."""
    test_list: FilePath | None = None
    """For `imagelist`: the text file of test images."""
    imbalance_ratio: Decided[Ratio | Literal["natural"]] = left_out()
    """Largest class over smallest, at least 1, or `natural` for all images; left out, the data set's usual one."""
    test_imbalance_ratio: TestRatio | Literal["natural"] = "natural"
    """Imbalance ratio of the test set, drawn by the same seed, profile and class order; `natural` keeps it whole."""
    imbalance: Literal["exp", "step"] = "exp"
    """Profile of the subset: `exp` (exponential decay over the classes) or `step` (the last half is small)."""
    class_order: str = "label"
    """Which classes are large: `label` (the first ones) or `permuted` (drawn by `seed.subset`)."""
    split_file: FilePath | None = None
    """A .npy or .npz file with the positions of the subset, instead of a drawn subset."""
    download: bool = False
    """Whether CIFAR's files may be downloaded into `data.dir`."""
    sampling: str = "natural"
    """The images of an epoch: `natural`, `balanced`, `class_balanced`, `square_root`, `progressive` or `file`."""
    plan_file: FilePath | None = None
    """For `data.sampling=file`: a .npy file with the positions of an epoch."""

    @model_validator(mode="after")
    def _plan_is_used(self) -> Self:
        if self.plan_file is not None and self.sampling != "file":
            raise LtatError(f"data.plan_file needs data.sampling=file and it is {self.sampling}; set it to file")
        return self


class BalancedSection(Section):
    """The balanced sub-dataset D_B: gamma * n_min images of every class (Cho, Lee, Kim, ICLR 2025)."""

    gamma: Positive | Literal["ir/2"] = "ir/2"
    """Images per class of D_B divided by those of the smallest class, above 0; `ir/2` is half the imbalance ratio."""
    resample: Literal["once", "per_epoch"] = "once"
    """When D_B is drawn: `once` or `per_epoch`."""
    remainder: Literal["no_replace", "replace"] = "no_replace"
    """How the last images of a class that is repeated are drawn: `no_replace` or `replace`."""
    partial: Annotated[Quotient, Field(ge=0, le=1)] = 1.0
    """Linear interpolation between the natural counts (0) and D_B (1); the paper trains on 1."""


class AugmentSection(Section):
    """The augmentation of training images: policy, random crop, flip, Cutout, in this order (docs/data.md)."""

    pad: Decided[Natural] = left_out()
    """Pixels added at each side before the random crop; left out, the data set's usual value (4 for CIFAR)."""
    flip: Decided[bool] = left_out()
    """Whether images are mirrored with probability 1/2; left out, the data set's usual value."""
    pad_mode: Literal["zero", "reflect"] = "zero"
    """The values of the added pixels: `zero` or `reflect`."""
    policy: str = "none"
    """`none`, `randaugment` (Cubuk et al., 2020) or `autoaugment` (the CIFAR-10 policy; Cubuk et al., 2019)."""
    ra_ops: Annotated[Count, Field(le=MAX_STEPS)] = 2
    """Operations of RandAugment for each image."""
    ra_magnitude: Annotated[int, Field(ge=0, le=30)] = 8
    """Magnitude of RandAugment, 0 to 30."""
    cutout: Natural = 0
    """Side in pixels of the black square of Cutout (DeVries & Taylor, 2017); 0 turns it off."""


class LoaderSection(Section):
    """The loader of the batches; the batches do not depend on it."""

    kind: str = "auto"
    """`resident` (images on the device), `ffcv` (.beton files), `torch` (DataLoader) or `auto`, the first that fits."""
    workers: Natural | Literal["auto"] = "auto"
    """Processes or threads that read images; `auto` is the number of cores less one."""
    share: Annotated[Quotient, Field(gt=0, le=1)] = 0.25
    """With `auto`: the share of the free device memory that resident images may take, above 0 to 1."""


class ModelSection(Section):
    """The network, and the weights it starts from."""

    name: str = "resnet18"
    """Architecture, a name of `ltat.models`: `resnet18`, `wrn34-10`, `preactresnet18` and others."""
    normalize: Literal["none", "train"] = "none"
    """`train` normalises by the training set's mean and deviation inside the model; `none` uses pixels in [0, 1]."""
    weights: FilePath | None = None
    """A saved model to start from, with its own mean and deviation; left out, random weights."""
    classes_by_name: bool = False
    """Whether the outputs of `model.weights` are permuted where its class names are the data's in another order."""


LENGTHS = ("eps", "step_size")
"""The settings of the attack that are lengths in its norm."""


class AttackSection(Section):
    """The training attack; its norm and radius are also the threat model of evaluation."""

    norm: Literal["linf", "l2"] = "linf"
    """`linf` or `l2`; a norm that differs from the recipe's needs its own radius and step."""
    eps: NonNegative = 8 / 255
    """Radius ε in units of pixels in [0, 1], such as 8/255; at most 1 in `linf`."""
    steps: Annotated[Natural, Field(le=MAX_STEPS)] = 10
    """Steps K of PGD; 0 trains on the start of the attack."""
    step_size: NonNegative = 2 / 255
    """Length of a step in the units of `attack.eps`, such as 2/255."""
    start: str = "gauss"
    """Start of the attack: `gauss` (x + 0.001 N(0, 1)), `uniform`, `uniform_clamp`, `pos_uniform` or `zero`."""
    loss: str = "ce"
    """The loss that the attack ascends: `ce`, `bsl`, `kl-self` (TRADES), `kl-clean` (RSLAD) or `kl-adv` (AdaAD)."""
    mode: Literal["eval", "train", "train_frozen_stats"] = "eval"
    """Mode of the network in the attack: `eval`, `train` (updates batch-norm statistics) or `train_frozen_stats`."""
    fold: bool = True
    """Whether an attack in mode `eval` runs on a copy with batch norm folded into the convolutions (docs/engine.md)."""
    final_forward: bool = False
    """Whether an attack in mode `train` ends with a forward of x', as in the code of Rice et al. and of AWP."""

    @classmethod
    def over(cls, below: Tree, given: Mapping[str, Any]) -> Tree:
        """As in every section, but another norm drops radius and step of ``below``, which are lengths in its norm."""
        norms = [tree.get("norm", cls.model_fields["norm"].default) for tree in (below, {**below, **given})]
        if norms[0] != norms[1]:
            below = {name: value for name, value in below.items() if name not in (*LENGTHS, "step")}  # its former name
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
                "because the defaults are for linf; give for example attack.eps=128/255 and attack.step_size=15/255"
            )
        return self


class OptimSection(Section):
    """Stochastic gradient descent."""

    lr: NonNegative = 0.1
    """Learning rate at the start, 0 or more."""
    momentum: Annotated[Quotient, Field(ge=0, lt=1)] = 0.9
    """Momentum, from 0 to below 1."""
    nesterov: bool = False
    """Whether the momentum is Nesterov's."""
    wd: Annotated[NonNegative, Field(le=1)] = 5e-4
    """Weight decay, 0 to 1."""
    wd_skip_bn: bool = False
    """Whether biases and batch norm's parameters have no weight decay."""


class ScheduleSection(Section):
    """The learning rate over the epochs."""

    kind: str = "multistep"
    """`multistep`, `cosine`, `onecycle`, `constant` or `compounding` (RoBal's: the factor again in every epoch)."""
    milestones: tuple[Positive, ...] = (0.75, 0.9)
    """Epochs in which the rate drops: up to 1 a share of all epochs, above 1 an epoch."""
    milestone_base: Literal[0, 1] = 1
    """1: the rate drops in the milestone's epoch, counted from 1; 0: after that many completed epochs."""
    factor: Annotated[Quotient, Field(gt=0, le=1)] = 0.1
    """Factor on the rate at a milestone, above 0 to 1."""
    warmup: Natural = 0
    """Number of epochs (not a share) over which the rate first rises linearly."""
    rise: Annotated[Quotient, Field(gt=0, lt=1)] = 0.3
    """For `onecycle` (torch's OneCycleLR by epochs, momentum fixed): the share of the epochs up to `optim.lr`."""
    div: Annotated[Quotient, Field(ge=1)] = 25.0
    """For `onecycle`: `optim.lr` over the rate of the first epoch, at least 1."""
    final_div: Annotated[Quotient, Field(ge=1)] = 1e4
    """For `onecycle`: the rate of the first epoch over that of the last, at least 1."""


class AverageSection(Section):
    """An average of the weights, which is validated, saved and reported instead of the raw weights."""

    kind: Literal["none", "ema", "swa"] = "none"
    """`none`, `ema` (over steps; Tarvainen & Valpola, 2017) or `swa` (over ends of epochs; Izmailov et al., 2018)."""
    decay: Annotated[Quotient, Field(ge=0, lt=1)] = 0.999
    """For `ema`: the share of the average that a step keeps, from 0 to below 1."""
    decay_epochs: NonNegative = 0.0
    """For `ema`: the epochs over which the weight of a step falls to 1/e, instead of `average.decay`; 0 is off."""
    class_power: NonNegative = 0.0
    """For `ema`: κ; the last layer's row of class c keeps 1 − (1 − d)(n_c/n_max)^κ, so rare classes move less."""
    start: NonNegative = 0.0
    """First epoch of the average: up to 1 a share of all epochs, above 1 an epoch."""
    bn: Literal["average", "copy", "recompute"] = "average"
    """Batch norm's statistics: `average` them too, `copy` the raw network's, or `recompute` them after each epoch."""
    raw: bool = False
    """Whether the raw network is validated, saved and reported as well, as `raw-best` and `raw-last`."""

    @classmethod
    def over(cls, below: Tree, given: Mapping[str, Any]) -> Tree:
        """As in every section, but of ``decay`` and ``decay_epochs`` the one that is given replaces the other."""
        for name, other in (("decay", "decay_epochs"), ("decay_epochs", "decay")):
            if name in given and other not in given:
                below = {key: value for key, value in below.items() if key != other}
        return super().over(below, given)

    @model_validator(mode="after")
    def _one_decay(self) -> Self:
        if self.decay_epochs and self.decay != type(self).model_fields["decay"].default:
            raise LtatError(
                f"average.decay={self.decay:g} and average.decay_epochs={self.decay_epochs:g} both set the decay; "
                "leave one out"
            )
        return self


class TrainSection(Section):
    """Length and batches of training, device and precision."""

    epochs: Epochs = 100
    """Number of epochs, 1 or more."""
    batch_size: Count = 128
    """Images in a batch, of all ranks together."""
    drop_last: bool = True
    """Whether a smaller last batch of an epoch is dropped."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the network body: `fp32`, `bf16` or `fp16`; images, logits and losses stay fp32."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or a device such as `cuda:1`."""
    deterministic: bool = False
    """Whether torch uses only deterministic algorithms."""
    compile: bool = False
    """Whether the network body runs through `torch.compile`."""
    sync_bn: bool = True
    """Whether batch norm takes its statistics from the whole batch where several ranks share it, or from each share."""
    graph: bool | Literal["auto"] = "auto"
    """Whether attack and update are a CUDA graph each; `auto`: on a GPU, once both have given the eager bits."""
    checkpoint_minutes: NonNegative = 10.0
    """Minutes of training after which the state to resume from is written within an epoch; 0: only after epochs."""


class SelectSection(Section):
    """How the best checkpoint is chosen."""

    set: Literal["val", "test", "none"] = "val"
    """`val` (held-out training images), `test` (the test set, as the papers do; every report says so) or `none`."""
    metric: Decided[str] = left_out()
    """An attack of `ltat.evaluate`; left out, `pgd10` on held-out images and `pgd20` on the test set."""
    every: Count = 1
    """Number of epochs from one candidate to the next; the last epoch is always a candidate."""
    from_epoch: Count = Field(default=1, alias="from")
    """The first epoch that is a candidate."""
    holdout: Annotated[Quotient, Field(gt=0, lt=1)] = 0.05
    """With `val`: the share of the training images that is held out, class by class, between 0 and 1."""


class EvalSection(Section):
    """The evaluation on the test set at the end of a run."""

    attacks: tuple[str, ...] = ("clean", "pgd20")
    """The attacks: `clean`, `pgdK`, `cwK`, `lsaK`, `tenfoldK`, `deepfool`, `autoattack` (docs/evaluation.md)."""
    n_examples: Count | Literal["all"] = "all"
    """Number of test images, as evenly from all classes as possible, or `all`."""
    batch_size: Count = 256
    """Images in a batch of evaluation."""
    teacher: bool = True
    """Whether the teacher that the run trains is evaluated, too."""
    tau: NonNegative = 0.0
    """τ of the logits z − τ log(n/N), also in the selection of the best checkpoint; 0 turns the adjustment off."""


class SeedSection(Section):
    """The seeds, independent of each other, each from 0 to 2³² − 1."""

    subset: Seed = 0
    """Seed of the long-tailed subset; 0 is the published one on CIFAR."""
    db: Decided[Seed] = left_out()
    """Seed of the balanced sub-dataset D_B; left out, that of `seed.subset`."""
    train: Seed = 0
    """Seed of weights, order, augmentation and attacks."""


class BslSection(Section):
    """Balanced softmax: log-prior tau * log n_c added to the logits (Ren et al. 2020; AT-BSL, CVPR 2024)."""

    tau: NonNegative = 1.0
    """τ, 0 or more; 0 is cross-entropy."""


class AwpSection(Section):
    """Adversarial weight perturbation, for any method (Wu et al., NeurIPS 2020)."""

    gamma: Annotated[NonNegative, Field(le=1)] = 0.0
    """Size of the perturbation relative to the weights, 0 to 1; 0 turns it off."""
    warmup: Natural = 0
    """Number of first epochs (not a share) without the perturbation."""


class RadiusSection(Section):
    """The class-wise radius of the training attack, for any method (RobustLT; Zhang et al., CVPR 2026)."""

    share: Annotated[Quotient, Field(ge=0, le=1)] = 0.0
    """α of the paper, 0 to 1: how much of the radius depends on the class; 0 is one radius for all."""
    ramp_share: Annotated[Quotient, Field(ge=0, le=1)] = 0.0
    """β_r of the paper: the share of all epochs over which the radii grow from 0; 0 turns the ramp off."""


class LossSection(Section):
    """The classification term on x' and its constants (docs/methods/losses.md)."""

    cls: str = "ce"
    """`ce`, `bsl` (balanced softmax), `ldam-drw`, `cb` (class-balanced) or `focal`."""
    smoothing: Annotated[Quotient, Field(ge=0, lt=1)] = 0.0
    """For `ce` and `bsl`: the share of each target that goes to all classes, by the prior of the loss; 0 to below 1."""
    margin: NonNegative = 0.5
    """For `ldam-drw`: the margin of the rarest class, between cosines."""
    scale: Positive = 30.0
    """For `ldam-drw`: s, the factor on the cosines."""
    drw: Annotated[Quotient, Field(ge=0, le=1)] = 160 / 200
    """For `ldam-drw`: the share of all epochs before classes are re-weighted, 0 to 1."""
    beta: Annotated[Quotient, Field(ge=0, lt=1)] = 0.9999
    """For `ldam-drw` and `cb`: β of the effective number of images, from 0 to below 1 (Cui et al., CVPR 2019)."""
    gamma: NonNegative = 2.0
    """For `focal`: γ, 0 or more (Lin et al., ICCV 2017)."""


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

    def by_dataset(self, usual: "DatasetSpec") -> Tree:
        """Values by dotted name for settings that were left out and that the data set or another setting decides."""
        return {
            "data.imbalance_ratio": "natural" if self.data.split_file else usual.default_ratio,
            "aug.pad": usual.pad,
            "aug.flip": usual.flip,
            "seed.db": self.seed.subset,
            "select.metric": "pgd20" if self.select.set == "test" else "pgd10",
        }

    def by_method(self, num_classes: int) -> Tree:
        """Values by dotted name for settings that were left out and that the method decides, for ``num_classes``.

        A method's class adds its own values.
        """
        del num_classes
        return {}
