"""The training loop:

    for every epoch, for every batch (x, y):
        x' = attack(S, x, y)
        minimise loss(S, x, x', y)

This loop trains the teacher and the student, each with its method and index plan.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ltat.data import Batch
from ltat.engine.captured_update import update_runner
from ltat.engine.gradients import MeanGradients, average_statistics
from ltat.engine.network import step_network
from ltat.engine.self_check import changed_by_update
from ltat.methods import LossTerms, Step
from ltat.methods.awp import perturbed_weights
from ltat.seeding import SharedGenerator, torch_generator
from ltat.training.averaging import build_average
from ltat.training.epoch_metrics import EpochMetrics, Row
from ltat.training.finite import loss_is_due, require_finite_loss, require_finite_state
from ltat.training.optimizer import build_optimizer, set_learning_rate
from ltat.training.schedule import learning_rate
from ltat.training.stage import Stage


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
        self.gradients = MeanGradients(stage.model, stage.ranks)
        self.average = build_average(stage)
        changes = partial(changed_by_update, stage.model, self.optimizer, stage.method)
        self.runner = update_runner(self.network, stage.method, changes, stage.device, stage.ranks)
        self.epoch = 0  # complete ones
        self.metrics = self.new_metrics()  # of the steps since then

    @property
    def outcome(self) -> Stage:
        """The stage with the network to validate and save: the average if one has begun, else the raw network."""
        return replace(self.stage, model=self.average.network)

    def run_epoch(self, before_step: Callable[[], None] = lambda: None) -> Row:
        """Train the next epoch, or what is left of it, and return its metrics.

        Args:
            before_step: called before every step; the state of the training may be taken then.

        Raises:
            LtatError: the loss or the weights are no longer finite.
        """
        stage, epoch, metrics = self.stage, self.epoch + 1, self.metrics
        lr = self._begin_epoch(epoch)
        counts = self.class_counts(epoch)
        done = metrics.steps
        for index, batch in enumerate(stage.loader.epoch(epoch, done * stage.loader.batch_size), done):
            before_step()
            metrics.add(self.train_step(self.step(batch, epoch, index, counts)), batch.all_labels)
            self.on_step(len(batch.all_labels))
            if loss_is_due(stage.device, index):
                require_finite_loss(metrics.logs["loss"], stage.name, epoch)
        self._end_epoch(epoch)
        self.epoch, self.metrics = epoch, self.new_metrics()
        return {"stage": stage.name, "epoch": epoch, "lr": lr, **metrics.row()}

    def _begin_epoch(self, epoch: int) -> float:
        self.metrics.start()
        config = self.stage.config
        lr = learning_rate(config.schedule, config.optim.lr, epoch, config.train.epochs)
        set_learning_rate(self.optimizer, lr)
        self.network.train()
        if not self.metrics.steps:  # else it began before an interruption
            self.stage.method.begin_epoch(epoch)
        self.runner.begin_epoch()
        return lr

    def _end_epoch(self, epoch: int) -> None:
        self.stage.method.end_epoch(epoch)
        self.require_finite()
        self.average.end_epoch(epoch, self.stage.loader)

    def require_finite(self) -> None:
        """Check the losses, weights and momentum after a step; raises ``LtatError`` where one is no longer finite."""
        name, epoch = self.stage.name, self.epoch + 1
        require_finite_loss(self.metrics.logs["loss"], name, epoch)
        state = {"model": self.stage.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        require_finite_state(state, name, epoch)

    def new_metrics(self) -> EpochMetrics:
        """The metrics of an epoch before its first step."""
        return EpochMetrics(self.stage.loader.split.num_classes, self.stage.device)

    def class_counts(self, epoch: int) -> Tensor:
        """The number of images of each class in an epoch, [C]."""
        return torch.as_tensor(self.stage.loader.class_counts(epoch), device=self.stage.device)

    def step(self, batch: Batch, epoch: int, index: int, class_counts: Tensor) -> Step:
        """The step with ``index`` (from 0) in an epoch, before its attack."""
        stage = self.stage
        noise = torch_generator(stage.config.seed.train, f"{stage.name}/attack", epoch, index, device=stage.device)
        own = noise if batch.shared is None else SharedGenerator(noise, batch.shared.share)
        epochs = stage.config.train.epochs
        return Step(self.network, batch, epoch, epochs, class_counts, x_adv=batch.images, generator=own)

    def train_step(self, step: Step) -> LossTerms:
        """Attack one batch and take one optimiser step on it."""
        method = self.stage.method
        x_adv = method.attack(step)
        step = step.for_loss()
        shared = step.batch.shared

        def update(images: Tensor, labels: Tensor, indices: Tensor, x_adv: Tensor) -> LossTerms:
            return self.update(replace(step, batch=Batch(images, labels, indices, shared), x_adv=x_adv))

        terms: LossTerms = self.runner.run(update, (*step.batch[:3], x_adv))
        method.end_step(replace(step, x_adv=x_adv), terms)
        self.average.end_step(step.epoch)
        return terms

    def update(self, step: Step) -> LossTerms:
        """Take the optimiser's step on a batch and its adversarial images."""
        method = self.stage.method
        self.optimizer.zero_grad(set_to_none=True)
        with perturbed_weights(step, self.stage.config, method.loss):
            terms = method.loss(step)
            self.scaler.scale(terms.loss).backward()
            self.gradients.wait()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not self.stage.config.train.sync_bn:
            average_statistics(self.stage.model, self.stage.ranks)
        return terms.detached()
