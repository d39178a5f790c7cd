"""Short runs that are trained on one rank and on several, and must end with the same weights.

They run in float64: in fp32 an attack follows the sign of gradients that are all but 0, and there another order of a
sum soon gives other images.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ltat.methods import METHODS
from ltat.methods.teachers import teacher_settings
from ltat.models import Classifier
from ltat.ranks import ALONE, Ranks
from ltat.training.preparing import prepare
from ltat.training.stage import Stage
from ltat.training.trainer import Trainer
from tests.training.tiny import tiny_config

# Batches of 130 and a smaller last one; the teacher's, of 61, are shared unevenly.
SHORT = ("train.epochs=2", "train.drop_last=false", "train.batch_size=130", "optim.lr=0.01", "select.set=none")
TEACHER = ("teacher.train=balanced", "teacher.epochs=1", "teacher.batch_size=61", "teacher.base_lr=0.01")

OPTIONS: dict[str, tuple[str, ...]] = {
    "awp": ("method=trades", "awp.gamma=0.01"),
    "class-wise radius": ("method=at-bsl", "radius.share=0.5"),
    "average": ("method=at-bsl", "average.kind=ema", "average.decay=0.9"),
    "recomputed statistics": ("method=at-bsl", "average.kind=swa", "average.bn=recompute"),
    "attack in training mode": ("method=pgd-at", "attack.mode=train"),
    "attack on the batch's statistics": ("method=at-bsl", "attack.mode=train_frozen_stats"),
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


def trained(case: str, ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """The weights and statistics of all networks of a case, by stage and name."""
    run = prepare(settings_of(case), ranks=ranks)
    ends = {} if run.teacher is None else dict(ended(run.teacher))
    if run.teacher is not None:
        settings = teacher_settings(run.config)
        run.teacher.model.requires_grad_(False).train(settings is not None and settings.mode == "train")
    return ends | dict(ended(run.student))


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
    yield from ((f"{stage.name} {name}", value.clone()) for name, value in trainer.outcome.model.state_dict().items())
    for name in ("loss", "train_adv"):
        yield f"{stage.name} {name}", Tensor([row[name] for row in rows])
    for name, value in stage.method.state_dict().items():
        if isinstance(value, Tensor):
            yield f"{stage.name} method {name}", value
