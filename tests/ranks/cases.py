"""Short runs that are trained on one rank and on several, and must end with the same weights.

They run in float64: in fp32 an attack follows the sign of gradients that are all but 0, and there another order of a
sum soon gives other images.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ltat.engine.global_norm import with_global_norms
from ltat.methods import METHODS
from ltat.methods.teachers import teacher_settings
from ltat.models import Classifier
from ltat.ranks import Ranks
from ltat.training.preparing import prepare
from ltat.training.stage import Stage
from ltat.training.trainer import Trainer
from tests.training.tiny import tiny_config

# Batches of 200 and of 182 images, the teacher's of 149: shared unevenly. Another setting may ask for more steps.
FEW_IMAGES = ("data.imbalance_ratio=50", "train.batch_size=200", "train.drop_last=false", "attack.steps=1")
SHORT = (*FEW_IMAGES, "train.epochs=2", "optim.lr=0.01", "select.set=none")
TEACHER = ("teacher.train=balanced", "teacher.epochs=1", "teacher.batch_size=149", "teacher.base_lr=0.01")

OPTIONS: dict[str, tuple[str, ...]] = {
    "awp": ("method=trades", "awp.gamma=0.01"),
    "class-wise radius": ("method=at-bsl", "radius.share=0.5"),
    "average": ("method=at-bsl", "average.kind=ema", "average.decay=0.9"),
    "recomputed statistics": ("method=at-bsl", "average.kind=swa", "average.bn=recompute"),
    "attack in training mode": ("method=pgd-at", "attack.mode=train", "attack.steps=2"),
    "attack on the batch's statistics": ("method=at-bsl", "attack.mode=train_frozen_stats", "attack.steps=2"),
    "average and AWP of the teacher": ("method=ard", "teacher.average.kind=ema", "teacher.awp.gamma=0.01"),
    "own average as the teacher": (
        *("method=self-distill", "teacher.train=ema", "average.kind=ema", "average.decay=0.9"),
        *("kd.form=kl_adv+igdm", "kd.target_tau=0.5"),
    ),
    "teacher in training mode": ("method=self-distill", "teacher.mode=train", "kd.form=kl_adv"),
    "one forward of both": ("method=self-distill", "kd.bn=concat"),
    "l2 ball": ("method=at-bsl", "attack.norm=l2", "attack.start=uniform", "attack.eps=0.5", "attack.step_size=0.2"),
    "statistics of each share": ("method=at-bsl", "train.sync_bn=false"),
}
"""Settings whose sums over the batch, or whose random numbers, are not those of the methods' defaults."""


def cases() -> dict[str, tuple[str, ...]]:
    """The settings of every case, by its name."""
    return {method: (f"method={method}",) for method in METHODS} | OPTIONS


def settings_of(case: str) -> Any:
    """The settings of a case."""
    given = cases()[case]
    taught = any(word in given[0] for word in ("distill", "ard", "rslad", "adaad"))
    return tiny_config(*SHORT, *(TEACHER if taught else ()), *given)


Ends = dict[str, Tensor]
"""What a training ends with, by name."""


def all_ends(ranks: Ranks, cases: Sequence[str]) -> dict[str, Ends]:
    """What every case ends with: its networks, its methods and the rows of metrics."""
    teachers: dict[str, Ends] = {}
    return {case: trained(case, ranks, teachers) for case in cases}


def trained(case: str, ranks: Ranks, teachers: dict[str, Ends]) -> Ends:
    """The ends of the stages of a case; ``teachers`` keeps each teacher, which several cases share."""
    run = prepare(settings_of(case), ranks=ranks)
    if run.teacher is None:
        return dict(ended(run.student))
    settings = teacher_settings(run.config)
    taught = finished(run.teacher, teachers)
    run.teacher.model.requires_grad_(False).train(settings is not None and settings.mode == "train")
    return taught | dict(ended(run.student))


def finished(teacher: Stage, teachers: dict[str, Ends]) -> Ends:
    """The ends of a teacher's stage, trained or with the weights that the same stage of another case ended with."""
    key = repr(teacher.config)
    if key in teachers:
        in_float64(teacher.model)
    else:
        teachers[key] = dict(ended(teacher))
    named = {name.removeprefix("teacher network "): value for name, value in teachers[key].items()}
    teacher.model.load_state_dict({name: named[name] for name in teacher.model.state_dict()})
    return teachers[key]


class Cast(nn.Sequential):
    """Modules, in float64 from the first to the last; images before and logits behind them are float32."""

    def __init__(self, *modules: nn.Module, dtype: torch.dtype) -> None:
        super().__init__(*modules)
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double()).to(self.dtype)


def in_float64(model: Classifier) -> Classifier:
    """The network with float64 weights; images and logits stay float32."""
    model.double()
    model.normalize = Cast(model.normalize, dtype=torch.float64)
    model.replace_classifier(Cast(model.classifier, dtype=torch.float32))
    return model


def ended(stage: Stage) -> Iterator[tuple[str, Tensor]]:
    """The network of a stage after its epochs, and what the method and the rows of metrics say."""
    in_float64(stage.model).requires_grad_(True)
    trainer = Trainer(stage)
    stage.method.initialise(stage.model)
    rows = [trainer.run_epoch() for _ in range(stage.config.train.epochs)]
    yield from (
        (f"{stage.name} network {name}", value.clone()) for name, value in trainer.outcome.model.state_dict().items()
    )
    for name in ("loss", "train_adv"):
        yield f"{stage.name} {name}", Tensor([row[name] for row in rows])
    for name, value in stage.method.state_dict().items():
        if isinstance(value, Tensor):
            yield f"{stage.name} method {name}", value


def norm_ends(ranks: Ranks, dtype: torch.dtype) -> Ends:
    """What a batch norm over shares of 3 and 2 images, with a mean far from 0, gives and passes back."""
    numbers = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(5, 3, 4, 4, generator=numbers, dtype=torch.float64).to(dtype) for _ in range(2))
    share, norm = ranks.share(len(x)), nn.BatchNorm2d(3, dtype=torch.promote_types(dtype, torch.float32))
    nn.init.normal_(norm.weight, generator=numbers)
    own = (x + 10)[share.rows].requires_grad_()
    y = with_global_norms(nn.Sequential(norm), ranks)(own)
    y.backward(dy[share.rows])
    sums = [norm.weight.grad, norm.bias.grad]
    ranks.sum_(sums)
    whole = {"y": ranks.joined(y.detach(), share), "dx": ranks.joined(own.grad, share)}
    return whole | dict(zip(("d_weight", "d_bias"), sums, strict=True)) | dict(norm.named_buffers())
