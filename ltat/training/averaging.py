"""An average of the weights over training, which is validated, saved and reported; training continues on the raw ones.

    ema, after every optimiser step:   a <- d a + (1 - d) w        (Tarvainen & Valpola, NeurIPS 2017)
    swa, after every epoch:            a <- a + (w - a) / (k + 1)  (Izmailov et al., UAI 2018), k epochs are in a

With s steps in an epoch, ``average.decay_epochs`` = E is d = exp(-1 / (s E)): a step weighs 1/e of its first weight E
epochs later, whatever the size of the set. With ``average.class_power`` = k the last layer's row of class c has

    d_c = 1 - (1 - d) (n_c / n_max)^k

TAD-AT (IEEE 11458004) lets the decay of its average differ between classes; only that much of it is public, and this
is a reconstruction.

Both begin as a = w in the epoch ``average.start``, ema after the first step of that epoch. Batch norm's running
statistics are averaged too, or copied from the raw network, or recomputed after every epoch by one pass over its clean,
augmented training images. Counters are always copied, because the mean of integers is not an integer.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from ltat.config import AverageSection, RunConfig, named_epoch
from ltat.data import Loader
from ltat.engine.gradients import average_statistics
from ltat.engine.network import StepNetwork
from ltat.errors import LtatError
from ltat.models import Classifier
from ltat.training.stage import Stage

Tensors = tuple[Tensor, ...] | list[Tensor]
Pair = tuple[Tensor, Tensor]
Update = Callable[[Tensors, Tensors, Tensor | int], None]


class Average:
    """No average: ``network`` is the trained network itself. Base of the averages."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.model = stage.model
        self.config = stage.config

    @property
    def network(self) -> Classifier:
        """The network to validate, save and report."""
        return self.model

    def end_step(self, epoch: int) -> None:
        """Called after every optimiser step of ``epoch``, counted from 1."""

    def end_epoch(self, epoch: int, loader: Loader) -> None:
        """Called after the last step of ``epoch``, with the images that were trained on."""

    def state_dict(self) -> dict[str, Any]:
        """The state that resuming needs besides the raw weights."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        del state


class RunningAverage(Average):
    """Base of the averages; a subclass defines how new weights enter the average, and when.

    The arithmetic is torch's. ``AveragedModel`` is not used, because it copies its count to the device at every step
    and waits for the copy.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.averaged = copy.deepcopy(stage.model).requires_grad_(False).eval()
        self.count = 0  # models in the average
        stage.method.take_average(self.averaged)

    def join(self, averaged: list[Pair], epoch: int) -> None:
        """Let the newest weights enter the average, in a step of ``epoch``."""
        raise NotImplementedError

    @property
    def network(self) -> Classifier:
        """The average, once it has begun."""
        return self.averaged if self.count else self.model

    @torch.no_grad()
    def update(self, epoch: int) -> None:
        """Add the newest weights to the average, if ``epoch`` is averaged."""
        if not is_averaged(self.config, epoch):
            return
        averaged, copied = self._pairs()
        if self.count == 0:
            averaged, copied = [], averaged + copied
        if averaged:
            self.join(averaged, epoch)
        if copied:
            own, newest = zip(*copied, strict=True)
            torch._foreach_copy_(own, newest)
        self.count += 1

    def _pairs(self) -> tuple[list[Pair], list[Pair]]:
        """Pairs of tensors (of the average, of the raw network) to average, and pairs to copy."""
        averaged: list[Pair] = list(zip(self.averaged.parameters(), self.model.parameters(), strict=True))
        copied: list[Pair] = []
        for pair in zip(self.averaged.buffers(), self.model.buffers(), strict=True):
            joins = self.config.average.bn == "average" and pair[0].is_floating_point()
            (averaged if joins else copied).append(pair)
        return averaged, copied

    def end_epoch(self, epoch: int, loader: Loader) -> None:
        """Recompute batch norm's statistics, if ``average.bn`` is ``"recompute"``."""
        if is_averaged(self.config, epoch) and self.config.average.bn == "recompute":
            network = StepNetwork(self.network, self.config.train.precision).eval()
            update_bn((batch.images for batch in loader.epoch(epoch)), network)
            if not self.config.train.sync_bn:
                average_statistics(self.network, loader.ranks)

    def state_dict(self) -> dict[str, Any]:
        """The average, and the number of models in it."""
        return {"n_averaged": self.count, "network": self.averaged.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.averaged.load_state_dict(state["network"])
        self.count = int(state["n_averaged"])


class Ema(RunningAverage):
    """Exponential moving average over optimiser steps."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.rows = class_rows(self.averaged, stage)

    def decay(self, epoch: int) -> float:
        """d, in the steps of ``epoch``."""
        settings = self.config.average
        if not settings.decay_epochs:
            return settings.decay
        return math.exp(-1 / (self.stage.loader.steps(epoch) * settings.decay_epochs))

    def join(self, averaged: list[Pair], epoch: int) -> None:
        """a <- d a + (1 - d) w, the last layer's rows with the d of their classes."""
        decay = self.decay(epoch)
        alike = [pair for pair in averaged if id(pair[0]) not in self.rows]
        own, newest = zip(*alike, strict=True)
        cast(Update, get_ema_multi_avg_fn(decay))(own, newest, self.count)
        for own_rows, newest_rows in averaged:
            share = self.rows.get(id(own_rows))
            if share is not None:
                own_rows.lerp_(newest_rows, (1 - decay) * share)

    def end_step(self, epoch: int) -> None:
        """Average every step."""
        self.update(epoch)


class Swa(RunningAverage):
    """Stochastic weight averaging: the mean over the ends of epochs."""

    def join(self, averaged: list[Pair], epoch: int) -> None:
        """a <- a + (w - a) / (k + 1)."""
        own, newest = zip(*averaged, strict=True)
        cast(Update, get_swa_multi_avg_fn())(own, newest, self.count)

    def end_epoch(self, epoch: int, loader: Loader) -> None:
        """Average every epoch."""
        self.update(epoch)
        super().end_epoch(epoch, loader)


AVERAGES: dict[str, type[Average]] = {"none": Average, "ema": Ema, "swa": Swa}


def build_average(stage: Stage) -> Average:
    """The average that ``average.kind`` names."""
    return AVERAGES[stage.config.average.kind](stage)


def raw_is_reported(config: RunConfig) -> bool:
    """Whether the raw network has checkpoints of its own beside those of the average."""
    return config.average.kind != "none" and config.average.raw


def raw_stage(stage: Stage) -> Stage | None:
    """The stage as without an average, where ``average.raw`` reports the raw network as well; else ``None``."""
    if not raw_is_reported(stage.config):
        return None
    return replace(stage, config=stage.config.model_copy(update={"average": AverageSection()}))


def class_rows(network: Classifier, stage: Stage) -> dict[int, Tensor]:
    """The parameters that average at the pace of their classes, by ``id``, with (n_c / n_max)^κ, [C] or [C, 1].

    These are the parameters of the last layer of ``network`` that have a row for each class, where
    ``average.class_power``, κ, is above 0. A class without images counts as if it had one.

    Raises:
        LtatError: the last layer has no such parameter.
    """
    power = stage.config.average.class_power
    if stage.config.average.kind != "ema" or not power:
        return {}
    rows = {id(p): p for p in network.classifier.parameters() if p.ndim and len(p) == network.num_classes}
    if not rows:
        raise LtatError("average.class_power needs a last layer with a row for each class; set average.class_power=0")
    counts = torch.as_tensor(stage.loader.class_counts(1)).clamp(min=1).double()
    shares = (counts / counts.max()) ** power
    return {key: shares.to(p).view(-1, *[1] * (p.ndim - 1)) for key, p in rows.items()}


def first_epoch(config: RunConfig) -> int:
    """The epoch, counted from 1, in which averaging begins."""
    return max(1, named_epoch(config.average.start, config.train.epochs))


def is_averaged(config: RunConfig, epoch: int) -> bool:
    """Whether the weights saved after ``epoch`` are averaged ones."""
    return config.average.kind != "none" and epoch >= first_epoch(config)


def check_average(config: RunConfig) -> None:
    """Check when averaging begins.

    Raises:
        LtatError: it would begin after the last epoch.
    """
    average, epochs = config.average, config.train.epochs
    if average.kind != "none" and first_epoch(config) > epochs:
        raise LtatError(f"average.start={average.start:g} is beyond the {epochs} epochs; lower it")


def average_record(config: RunConfig, epoch: int) -> dict[str, Any]:
    """The entry of a model card about the average; empty if ``epoch`` is not averaged."""
    if not is_averaged(config, epoch):
        return {}
    average = config.average
    name = "decay_epochs" if average.decay_epochs else "decay"
    decay = {name: getattr(average, name)} if average.kind == "ema" else {}
    rows = {"class_power": average.class_power} if average.kind == "ema" and average.class_power else {}
    return {"average": {"kind": average.kind, **decay, **rows, "from_epoch": first_epoch(config), "bn": average.bn}}
