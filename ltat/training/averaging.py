"""An average of the weights over training, which is validated, saved and reported; training continues on the raw ones.

    ema, after every optimiser step:   a <- d a + (1 - d) w        (Tarvainen & Valpola, NeurIPS 2017)
    swa, after every epoch:            a <- a + (w - a) / (k + 1)  (Izmailov et al., UAI 2018), k epochs are in a

Both begin as a = w in the epoch ``average.start``, ema after the first step of that epoch. Batch norm's running
statistics are averaged too, or copied from the raw network, or recomputed after every epoch by one pass over its clean,
augmented training images. Counters are always copied, because the mean of integers is not an integer.
"""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from ltat.config import RunConfig, named_epoch
from ltat.data import Loader
from ltat.engine.gradients import average_statistics
from ltat.engine.network import StepNetwork
from ltat.errors import LtatError
from ltat.models import Classifier

Tensors = tuple[Tensor, ...] | list[Tensor]
Pair = tuple[Tensor, Tensor]
Update = Callable[[Tensors, Tensors, Tensor | int], None]


class Average:
    """No average: ``network`` is the trained network itself. Base of the averages."""

    def __init__(self, model: Classifier, config: RunConfig) -> None:
        self.model = model
        self.config = config

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

    def __init__(self, model: Classifier, config: RunConfig) -> None:
        super().__init__(model, config)
        self.averaged = copy.deepcopy(model).requires_grad_(False).eval()
        self.count = 0  # models in the average

    def rule(self) -> Update:
        """The function that updates the average with the newest weights."""
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
            own, newest = zip(*averaged, strict=True)
            self.rule()(own, newest, self.count)
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

    def rule(self) -> Update:
        """a <- d a + (1 - d) w."""
        return cast(Update, get_ema_multi_avg_fn(self.config.average.decay))

    def end_step(self, epoch: int) -> None:
        """Average every step."""
        self.update(epoch)


class Swa(RunningAverage):
    """Stochastic weight averaging: the mean over the ends of epochs."""

    def rule(self) -> Update:
        """a <- a + (w - a) / (k + 1)."""
        return cast(Update, get_swa_multi_avg_fn())

    def end_epoch(self, epoch: int, loader: Loader) -> None:
        """Average every epoch."""
        self.update(epoch)
        super().end_epoch(epoch, loader)


AVERAGES: dict[str, type[Average]] = {"none": Average, "ema": Ema, "swa": Swa}


def build_average(model: Classifier, config: RunConfig) -> Average:
    """The average that ``average.kind`` names."""
    return AVERAGES[config.average.kind](model, config)


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
    decay = {"decay": average.decay} if average.kind == "ema" else {}
    return {"average": {"kind": average.kind, **decay, "from_epoch": first_epoch(config), "bn": average.bn}}
