"""What a run costs, in image passes: a unit in which runs of different methods and lengths compare.

One pass is the forward and the backward of one image through the network, as in a step of PGD or in the update; a
forward alone is a third of it. AT-BSL with ten steps so costs 11 passes for each image of each epoch. The images of a
last batch that is dropped are counted, too. The main method's run in the paper's setting, CIFAR-10-LT of ratio 50 with
the teacher stage, is 26.0 million passes.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from ltat.config import Asked, RunConfig
from ltat.config.loading import validated
from ltat.config.resolving import for_dataset, resolve
from ltat.data import Batch, Split, holdout_indices
from ltat.data.longtail import longtail_counts
from ltat.methods import Method, Step, find_method
from ltat.methods.awp import perturbed_weights
from ltat.methods.teachers import TaughtConfig, teacher_settings
from ltat.models.small import SmallNet
from ltat.training.averaging import is_averaged
from ltat.training.batches import build_plan
from ltat.training.run_data import load_data

FORWARD = 1 / 3
CLASSES = 10
IRRELEVANT = ("data", "db", "aug", "loader", "model", "optim", "schedule", "select", "eval", "seed")
"""The sections that do not change what a step computes, but for its size."""
PUBLISHED = {"cifar10": (5000, 1000, 10), "cifar100": (500, 100, 100), "tiny-imagenet": (500, 50, 200)}
"""Training and test images of a class, and classes, of the sets whose files need not be there."""
SURVIVING = 1 / 3
"""The share of the test images that is taken to survive AutoAttack's first attack."""
AUTOATTACK = 100 + SURVIVING * (9 * 100 + 9 * 2 * 100 + 5000 * FORWARD)
"""Passes of AutoAttack for an image: APGD-CE, then APGD-T, FAB-T and Square on the survivors."""


@dataclass(frozen=True)
class Images:
    """The images of a run: of each class for training, and all for testing."""

    counts: tuple[int, ...]
    test: int


@dataclass(frozen=True)
class RunCost:
    """The image passes of a run.

    Attributes:
        teacher: of the teacher stage.
        student: of the training proper; selection and evaluation are not in it.
        selection: of the attacks that choose the best checkpoint.
        evaluation: of the attacks on the test images at the end.
    """

    teacher: float
    student: float
    selection: float
    evaluation: float

    @property
    def training(self) -> float:
        """Of both stages: the number by which recipes of equal compute are matched."""
        return self.teacher + self.student

    @property
    def total(self) -> float:
        """Of everything."""
        return self.training + self.selection + self.evaluation


def images_of(asked: Asked[RunConfig]) -> Images:
    """The images that a run trains and is tested on; those of a published set follow from its ratios, without files.

    Raises:
        LtatError: the data set cannot be read.
    """
    config = for_dataset(asked).config
    known = PUBLISHED.get(config.data.name)
    if known is not None and config.data.split_file is None:
        train, test, classes = known
        profile = config.data.imbalance
        tested = sum(subset_counts(test, classes, config.data.test_imbalance_ratio, profile))
        return Images(subset_counts(train, classes, config.data.imbalance_ratio, profile), tested)
    data = load_data(config.model_copy(update={"select": config.select.model_copy(update={"set": "none"})}))
    return Images(tuple(data.dataset.train.counts.tolist()), len(data.dataset.test))


def subset_counts(each: int, classes: int, ratio: float | str | None, profile: str) -> tuple[int, ...]:
    """Images of each class in a subset of that imbalance ratio, of a set with ``each`` images of every class."""
    return tuple(longtail_counts(each, classes, float(1 if ratio in ("natural", None) else ratio), profile).tolist())


def run_cost(asked: Asked[RunConfig], images: Images | None = None) -> RunCost:
    """The image passes of a run, by its settings.

    Args:
        asked: the settings.
        images: what it is trained and tested on; :func:`images_of` if left out.

    Raises:
        LtatError: settings or data that cannot be used.
    """
    images = images or images_of(asked)
    config = resolve(asked, len(images.counts))
    train, held = split_of(images.counts, config)
    teacher = teacher_stage(config)
    stages = [config] if teacher is None else [config, teacher]
    chosen_on = images.test if config.select.set == "test" else held
    return RunCost(
        teacher=0.0 if teacher is None else stage_cost(teacher, train),
        student=stage_cost(config, train),
        selection=sum(selection_cost(stage, chosen_on) for stage in stages),
        evaluation=evaluation_cost(config, images.test, teacher is not None and config.eval.teacher),
    )


def teacher_stage(config: RunConfig) -> RunConfig | None:
    """The settings of the teacher stage that the run trains, or ``None`` without one."""
    given = teacher_settings(config)
    named = given is not None and given.path is not None
    return None if named else find_method(config.method).teacher_config(config)


def split_of(counts: tuple[int, ...], config: RunConfig) -> tuple[Split, int]:
    """A split with the labels of the run's training images and blank images, and the number that is held out."""
    labels, held = np.repeat(np.arange(len(counts)), counts), 0
    if config.select.set == "val":
        kept, out = holdout_indices(labels, config.select.holdout, config.seed.subset, len(counts))
        labels, held = labels[kept], len(out)
    blank = np.zeros((len(labels), 1, 1, 1), dtype=np.uint8)
    return Split(blank, labels, len(counts), np.arange(len(labels))), held


def stage_cost(config: RunConfig, split: Split) -> float:
    """The image passes of all epochs of a stage."""
    plan, epochs = build_plan(split, config), config.train.epochs
    passes = by_epoch(lambda epoch: passes_of_step(config, epoch), 1, epochs)
    recomputed = config.average.kind != "none" and config.average.bn == "recompute"
    extra = [FORWARD if recomputed and is_averaged(config, epoch) else 0.0 for epoch in range(1, epochs + 1)]
    return sum(plan.size(e) * (own + more) for e, (own, more) in enumerate(zip(passes, extra, strict=True), 1))


def by_epoch(passes: Callable[[int], float], first: int, last: int) -> list[float]:
    """The passes of each epoch, asked for only where the method changes: a constant has the same value at both ends."""
    ends = passes(first), passes(last)
    if last - first < 2:
        return list(ends[: last - first + 1])
    if ends[0] == ends[1]:
        return [ends[0]] * (last - first + 1)
    middle = (first + last) // 2
    return by_epoch(passes, first, middle) + by_epoch(passes, middle + 1, last)


def selection_cost(config: RunConfig, images: int) -> float:
    """The image passes that choose the best checkpoint among the epochs, on ``images`` images."""
    select, epochs = config.select, config.train.epochs
    if select.set == "none":
        return 0.0
    candidates = [e for e in range(1, epochs + 1) if e >= select.from_epoch and (e % select.every == 0 or e == epochs)]
    passes = attack_passes("clean") + attack_passes(str(select.metric))
    return len(candidates) * images * passes * networks_of(config)


def networks_of(config: RunConfig) -> int:
    """How many networks a stage ends with: the average, and the raw one where it is reported beside it."""
    return 2 if config.average.kind != "none" and config.average.raw else 1


def evaluation_cost(config: RunConfig, images: int, teacher: bool) -> float:
    """The image passes of the evaluation: of the last network, the best one if one is chosen, and the ``teacher``."""
    networks = networks_of(config) * (1 + (config.select.set != "none")) + teacher
    wanted = config.eval.n_examples
    tested = images if wanted == "all" else min(images, wanted)
    return networks * tested * sum(map(attack_passes, config.eval.attacks))


def attack_passes(attack: str) -> float:
    """The image passes of an attack of the evaluation for one image; its last forward is a forward alone."""
    if attack == "autoattack":
        return AUTOATTACK
    steps = re.match(r"[a-z]+(\d+)", attack)
    return (int(steps[1]) if steps else 0) + FORWARD


def passes_of_step(config: RunConfig, epoch: int) -> float:
    """The passes of a step for an image of its batch, in an epoch: attack, loss, teacher, and AWP's ascent.

    Counted in a step on a small network, so that any method can be. The result does not depend on data and network.
    """
    tree = {name: own for name, own in config.model_dump(mode="json", by_alias=True).items() if name not in IRRELEVANT}
    return _passes_of_step(json.dumps(tree, sort_keys=True), epoch)


@lru_cache(maxsize=1024)
def _passes_of_step(settings: str, epoch: int) -> float:
    tree = json.loads(settings)
    kind = find_method(tree["method"])
    # A working copy would not be seen by the hooks.
    tree["train"] |= {"precision": "fp32", "compile": False, "device": "cpu"}
    tree["attack"] |= {"fold": False}
    config = resolve(Asked(validated(kind.Config, tree)), CLASSES)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        return CountedStep(kind, config).passes(epoch)


class CountedStep:
    """A step of a method on a small network that counts the images it is given."""

    def __init__(self, kind: type[Method], config: RunConfig) -> None:
        self.counted, self.config = 0.0, config
        self.counts = torch.arange(2 * CLASSES, CLASSES, -1)
        teacher = self._network().eval() if isinstance(config, TaughtConfig) else None
        self.method = kind(config, self.counts, teacher)
        self.model = self.method.prepare_model(self._network()).train()

    def passes(self, epoch: int) -> float:
        """The passes for an image of the batch."""
        n, method = 2, self.method
        batch = Batch(torch.rand(n, 1, 8, 8), torch.arange(n), torch.arange(n))
        noise = torch.Generator().manual_seed(0)
        step = Step(self.model, batch, epoch, self.config.train.epochs, self.counts, batch.images, noise)
        method.begin_epoch(epoch)
        self.counted = 0.0
        step = replace(step, x_adv=method.attack(step))
        with perturbed_weights(step, self.config, method.loss):
            terms = method.loss(step)
            terms.loss.backward()
        method.end_step(step, terms.detached())
        return round(self.counted / n, 6)

    def _network(self) -> SmallNet:
        network = SmallNet(CLASSES, in_channels=1)
        network.conv1.register_forward_pre_hook(self._count)
        return network

    def _count(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        (images,) = inputs
        differentiated = images.requires_grad or next(layer.parameters()).requires_grad
        self.counted += len(images) * (1.0 if differentiated and torch.is_grad_enabled() else FORWARD)
