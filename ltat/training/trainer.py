"""The training loop:

    for every epoch, for every batch (x, y):
        x' = attack(S, x, y)
        minimise loss(S, x, x', y)

The teacher and the student are trained by this same loop, with another method and another index plan.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ltat.data import Batch
from ltat.engine.captured_update import CapturedUpdate, CudaRecorder, why_update_not_captured
from ltat.engine.network import step_network
from ltat.errors import LtatError
from ltat.methods import LossTerms, Step
from ltat.methods.awp import perturbed_weights
from ltat.seeding import torch_generator
from ltat.training.averaging import build_average
from ltat.training.epoch_metrics import EpochMetrics, Row
from ltat.training.finite import non_finite_tensor
from ltat.training.optimizer import build_optimizer, set_learning_rate
from ltat.training.schedule import learning_rate
from ltat.training.stage import Stage

FINITE_CHECK_STEPS = 50  # on a GPU, where reading the loss would stall every step


class Trainer:
    """Runs the epochs of a stage.

    Args:
        stage: the network, method, data and settings.
        on_step: called after every step with the number of images.
    """

    def __init__(self, stage: Stage, on_step: Callable[[int], None] = lambda images: None) -> None:
        self.stage = stage
        self.on_step = on_step
        self.network = step_network(stage.model, stage.config.train)
        scaled = stage.config.train.precision == "fp16"
        self.optimizer = build_optimizer(stage.model, stage.config.optim, scaled)
        self.scaler = torch.amp.GradScaler(stage.device.type, enabled=scaled)
        self.average = build_average(stage.model, stage.config)
        captured = why_update_not_captured(self.network, stage.method) is None
        self.captured = CapturedUpdate[LossTerms](CudaRecorder(stage.device), stage.method) if captured else None
        self.epoch = 0

    @property
    def outcome(self) -> Stage:
        """The stage with the network that is validated and saved: the average, where one has begun."""
        return replace(self.stage, model=self.average.network)

    def run_epoch(self) -> Row:
        """Train the next epoch and return its figures.

        Raises:
            LtatError: the loss is no longer finite.
        """
        stage, epoch, epochs = self.stage, self.epoch + 1, self.stage.config.train.epochs
        lr = learning_rate(stage.config.schedule, stage.config.optim.lr, epoch, epochs)
        set_learning_rate(self.optimizer, lr)
        counts = self.class_counts(epoch)
        sums = EpochMetrics(len(counts), stage.device)
        started = time.perf_counter()
        self.network.train()
        stage.method.begin_epoch(epoch)
        if self.captured:
            self.captured.begin_epoch()
        for index, batch in enumerate(stage.loader.epoch(epoch)):
            sums.add(self.train_step(self.step(batch, epoch, index, counts)), batch.labels)
            self.on_step(len(batch.labels))
            self._require_finite(sums, epoch, index)
        stage.method.end_epoch(epoch)
        self._require_finite(sums, epoch, index=None)
        self._require_finite_state(epoch)
        self.average.end_epoch(epoch, stage.loader)
        self.epoch = epoch
        row = {"stage": stage.name, "epoch": epoch, "lr": lr, **sums.row()}
        seconds = time.perf_counter() - started
        return {**row, "seconds": seconds, "images_per_s": sum(sums.seen.tolist()) / seconds}

    def class_counts(self, epoch: int) -> Tensor:
        """Images of each class that an epoch serves, [C]."""
        return torch.as_tensor(self.stage.loader.class_counts(epoch), device=self.stage.device)

    def step(self, batch: Batch, epoch: int, index: int, class_counts: Tensor) -> Step:
        """The step of that ``index`` (from 0) in an epoch, before its attack."""
        stage = self.stage
        noise = torch_generator(stage.config.seed.train, f"{stage.name}/attack", epoch, index, device=stage.device)
        epochs = stage.config.train.epochs
        return Step(self.network, batch, epoch, epochs, class_counts, x_adv=batch.images, generator=noise)

    def train_step(self, step: Step) -> LossTerms:
        """Attack one batch and take one optimiser step on it."""
        method = self.stage.method
        step = replace(step, x_adv=method.attack(step))
        terms = self._captured_update(step, self.captured) if self.captured else self.update(step)
        method.end_step(step, terms)
        self.average.end_step(step.epoch)
        return terms

    def update(self, step: Step) -> LossTerms:
        """The optimiser's step on a batch and its adversarial images."""
        method = self.stage.method
        self.optimizer.zero_grad(set_to_none=True)
        with perturbed_weights(step, self.stage.config, method.loss):
            terms = method.loss(step)
            self.scaler.scale(terms.loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return terms.detached()

    def _captured_update(self, step: Step, captured: CapturedUpdate[LossTerms]) -> LossTerms:
        def update(images: Tensor, labels: Tensor, indices: Tensor, x_adv: Tensor) -> LossTerms:
            return self.update(replace(step, batch=Batch(images, labels, indices), x_adv=x_adv))

        return captured.run(update, (*step.batch, step.x_adv))

    def _require_finite_state(self, epoch: int) -> None:
        wild = non_finite_tensor({"model": self.stage.model.state_dict(), "optimizer": self.optimizer.state_dict()})
        if wild:
            raise self._diverged(f"tensor {wild}", epoch)

    def _require_finite(self, sums: EpochMetrics, epoch: int, index: int | None) -> None:
        look = index is None or self.stage.device.type == "cpu" or (index + 1) % FINITE_CHECK_STEPS == 0
        if look and not torch.isfinite(sums.logs["loss"]):
            raise self._diverged("loss", epoch)

    def _diverged(self, what: str, epoch: int) -> LtatError:
        return LtatError(
            f"the {what} of stage {self.stage.name!r}: no longer finite, or huge, in epoch {epoch}; "
            "lower optim.lr, or train with --precision fp32"
        )

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs; random draws are keyed by epoch and step and need nothing."""
        return {
            "epoch": self.epoch,
            "model": self.stage.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "method": self.stage.method.state_dict(),
            "average": self.average.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the epoch in which :meth:`state_dict` was taken."""
        self.stage.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        _require_shapes(self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self.stage.method.load_state_dict(state["method"])
        self.average.load_state_dict(state.get("average", {}))
        self.epoch = int(state["epoch"])


def _require_shapes(optimizer: torch.optim.Optimizer) -> None:
    """torch takes momentum of any shape from a state, and the fused step would read beyond it."""
    for parameter, kept in optimizer.state.items():
        momentum = kept.get("momentum_buffer")
        if momentum is not None and momentum.shape != parameter.shape:
            raise ValueError(f"momentum {tuple(momentum.shape)} for weights {tuple(parameter.shape)}")
