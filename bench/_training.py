"""The same training twice: by ltat's trainer and by the plain loop, on the same images and network."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench import plain_at_bsl
from bench._harness import Run, modes_to_try
from bench.plain_at_bsl import Recipe
from ltat.config import RunConfig, load_config
from ltat.config.resolving import resolve
from ltat.data import Dataset, Split
from ltat.methods import find_method
from ltat.models import build_model
from ltat.ranks import ALONE, Ranks
from ltat.training.run_data import RunData
from ltat.training.stage import build_stage
from ltat.training.trainer import Trainer

# How ltat trains, by its public settings; the first is the exact reference.
SETTINGS: dict[str, tuple[str, ...]] = {
    "ltat fp32": ("train.precision=fp32", "attack.fold=false", "train.graph=false"),
    "ltat fp32 folded": ("train.precision=fp32", "attack.fold=true", "train.graph=false"),
    "ltat bf16": ("train.precision=bf16", "attack.fold=true", "train.graph=false"),
}
FASTEST, GRAPH = "ltat bf16", "ltat bf16 graph"
GRAPH_SETTINGS = (*SETTINGS[FASTEST], "train.graph=true")
COMPILE = "ltat bf16 compile"
COMPILE_SETTINGS = (*SETTINGS[FASTEST], "train.compile=true")
COUNTS = (5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100)  # CIFAR-10-LT, imbalance ratio 50


@dataclass(frozen=True)
class Workload:
    """Long-tailed training images and the settings of ltat's run on them.

    ``settings`` are ``section.key=value`` over AT-BSL's published ones, or over those of a ``base`` recipe.
    """

    train: Split
    settings: tuple[str, ...]
    device: torch.device
    base: str | None = None

    def config(self, *more: str) -> RunConfig:
        """The settings of an AT-BSL run, complete."""
        given = ["method=at-bsl", "select.set=none", f"train.device={self.device}", *self.settings, *more]
        asked = load_config(lambda name: find_method(name).Config, recipe=self.base, assignments=given)
        return resolve(asked, self.train.num_classes)

    @property
    def recipe(self) -> Recipe:
        """The plain loop's constants: the same."""
        config = self.config()
        attack, optim = config.attack, config.optim
        return Recipe(
            eps=attack.eps,
            step=attack.step_size,
            steps=attack.steps,
            lr=optim.lr,
            momentum=optim.momentum,
            weight_decay=optim.wd,
            batch_size=config.train.batch_size,
            pad=config.aug.pad,
            flip=config.aug.flip,
        )


def random_split(counts: tuple[int, ...], size: int = 32) -> Split:
    """Random images, sorted by class: how long a step takes does not depend on what they show."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), size, size, 3), dtype=np.uint8)
    return Split(images, labels, len(counts), np.arange(len(labels)))


def gpu_settings(device: torch.device) -> dict[str, tuple[str, ...]]:
    """The settings that only a GPU makes quicker, on one: the graph, and the compiler where modes of it are tried."""
    if device.type != "cuda":
        return {}
    return {GRAPH: GRAPH_SETTINGS} | ({COMPILE: COMPILE_SETTINGS} if modes_to_try(device) else {})


def make_trainer(workload: Workload, settings: tuple[str, ...], ranks: Ranks = ALONE) -> Trainer:
    """ltat's trainer at the beginning of a run that ``ranks`` share; where it distils, from an untrained network."""
    config = workload.config(*settings)
    names = tuple(map(str, range(workload.train.num_classes)))
    data = RunData(Dataset("bench", workload.train, workload.train, names), workload.train, None)
    teacher_config = find_method(config.method).teacher_config(config)
    teacher = None
    if teacher_config is not None:
        teacher = build_stage("teacher", teacher_config, data, workload.device, ranks=ranks).model.eval()
    return Trainer(build_stage("student", config, data, workload.device, teacher, ranks))


@dataclass(frozen=True)
class Plain:
    """The plain loop at the beginning of a run."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    log_prior: Tensor
    recipe: Recipe


def make_plain(workload: Workload, wrap: Callable[[nn.Module], nn.Module] = lambda model: model) -> Plain:
    """The same network for the plain loop, NCHW; ``wrap`` may compile it."""
    channels = workload.train.images.shape[-1]
    model = build_model(workload.config().model.name, num_classes=workload.train.num_classes, in_channels=channels)
    model = model.to(workload.device)
    log_prior = torch.as_tensor(workload.train.counts, device=workload.device).float().log()
    return Plain(wrap(model), plain_at_bsl.make_optimizer(model, workload.recipe), log_prior, workload.recipe)


def plain_epochs(workload: Workload, workers: int, wrap: Callable[[nn.Module], nn.Module] = lambda model: model) -> Run:
    """An epoch of the plain loop at every call; ``wrap`` as in :func:`make_plain`."""
    plain = make_plain(workload, wrap)
    loader = plain_at_bsl.make_loader(workload.train.images, workload.train.labels, workload.recipe, workers)
    return lambda: plain_at_bsl.train_epoch(
        plain.network, plain.optimizer, loader, plain.log_prior, plain.recipe, workload.device
    )
