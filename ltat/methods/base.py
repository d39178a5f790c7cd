"""What a training method is: an attack objective and a loss, with hooks for the few that need more.

The trainer calls, in this order and knowing no method by name::

    model = method.prepare_model(model)                         # when the network is built
    method.initialise(model)                                    # before the first epoch
    method.begin_epoch(progress)                                # every epoch
        x_adv = method.attack(model, batch, progress, generator)
        with method.perturbed_weights(model, batch, x_adv, progress):  # every step
            terms = method.loss(model, batch, x_adv, progress)
            terms.loss.backward()
        optimizer.step()
        method.end_step(model, batch, terms)
    method.end_epoch(progress)

``model`` returns fp32 logits whatever the precision of its body. ``loss`` leaves no trace in the method: it may be
asked more than once a step. How the literature fits: TRADES and the distillation family override ``objective``; MART
and TRADES run more forwards in ``loss``; AWP is ``perturbed_weights`` and RobustLT ``radius_scale``, which settings
switch on for every method; RoBal replaces the classifier in ``prepare_model``; REAT gathers its per-class predictions
in ``end_step``, weights its ``objective`` by those of the previous epoch and keeps them in ``state_dict``; DAFA
gathers likewise, and gives every class a ``radius_scale``; TAET's first stage returns clean images from ``attack``; a
post-hoc adjustment that is not part of the network goes into ``deployed``.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ltat.attacks import STARTS, Objective, ThreatModel, pgd
from ltat.attacks.modes import attack_mode
from ltat.config import RunConfig
from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods.awp import adversarial_weights, check_awp
from ltat.methods.objectives import check_inner_loss, inner_objective
from ltat.methods.radius import class_radii, ramp, scaled
from ltat.models import Classifier


@dataclass(frozen=True)
class Progress:
    """Where training stands: ``epoch`` counts from 1 to ``epochs``."""

    epoch: int
    epochs: int


class LossTerms(NamedTuple):
    """What a method's loss returns.

    ``loss`` is the 0-dim value to minimise, ``logits`` [B, C] the model's detached logits on the adversarial
    images, ``logs`` 0-dim detached tensors by name, averaged over the epoch by the trainer.
    """

    loss: Tensor
    logits: Tensor
    logs: dict[str, Tensor]


Hook = TypeVar("Hook", bound=Callable[..., Any])


def unread_by_loss(end_step: Hook) -> Hook:
    """Mark an ``end_step`` of which the next ``loss`` sees at most what was written into tensors, in place.

    Only then may the update be one CUDA graph (``train.graph``), which keeps the addresses of an epoch's first steps.
    """
    vars(end_step)["unread_by_loss"] = True
    return end_step


def final_forward(model: nn.Module, x_adv: Tensor) -> None:
    """Show the finished x' [B, C, H, W] to the network in training mode, as codes do that then ask for its loss."""
    with torch.no_grad(), attack_mode(model, "train"):
        model(x_adv)


class Method:
    """Base of every training method: plain PGD on the configured objective, no hooks, no state.

    A subclass states its settings in ``Config`` (a :class:`ltat.config.RunConfig` whose defaults are the published
    ones), and implements :meth:`loss`.

    Args:
        config: the run's settings, an instance of the class's ``Config``.
        class_counts: images of each class that the epoch's plan serves, [C], on the training device; with natural
            sampling those of the training set.
        teacher: a network with the same classes, for methods that distil.

    Raises:
        LtatError: the settings do not fit together, or a teacher is missing.
    """

    Config: ClassVar[type[RunConfig]]

    def __init__(self, config: RunConfig, class_counts: Tensor, teacher: nn.Module | None = None) -> None:
        self.config = config
        self.class_counts = class_counts
        self.teacher = teacher
        self.threat = ThreatModel(norm=config.attack.norm, eps=config.attack.eps)
        check_inner_loss(config.attack.loss, config.attack.start, teacher)
        if config.attack.start not in STARTS:
            raise LtatError(f"attack.start={config.attack.start} is unknown; choose one of {', '.join(STARTS)}")
        check_awp(config)

    @classmethod
    def resolve(cls, config: RunConfig, num_classes: int) -> RunConfig:
        """The settings with every one filled that the number of classes decides, as they are saved with the run."""
        del num_classes
        return config

    @classmethod
    def teacher_config(cls, config: RunConfig) -> RunConfig | None:
        """Settings of the teacher stage that must come first, or ``None`` where the method needs no teacher."""
        del config
        return None

    def prepare_model(self, model: Classifier) -> Classifier:
        """Change the network when it is built (another classifier); new weights draw from the run's seed."""
        return model

    def initialise(self, model: Classifier) -> None:
        """Set the weights a run starts from, once a teacher is trained (a warm start)."""

    def deployed(self, model: nn.Module) -> nn.Module:
        """The network to evaluate and attack after training, with any post-hoc adjustment inside."""
        return model

    def remarks(self) -> tuple[str, ...]:
        """What a run says of the method when training begins, a line each."""
        return ()

    def begin_epoch(self, progress: Progress) -> None:
        """Called before an epoch's first batch."""

    def end_epoch(self, progress: Progress) -> None:
        """Called after an epoch's last batch."""

    def objective(self, model: nn.Module, batch: Batch) -> Objective:
        """The per-sample loss that the training attack ascends, ``attack.loss`` of the settings.

        ``model`` is in the mode of the attack.
        """
        return inner_objective(self.config.attack.loss, model, batch, self.log_prior, self.teacher)

    def training_ball(self) -> tuple[ThreatModel, float]:
        """The ball and the step size of the training attack; evaluation always runs over ``threat``."""
        return self.threat, self.config.attack.step_size

    def radius_scale(self, batch: Batch, progress: Progress) -> Tensor | None:
        """What multiplies radius and step for each image of the batch, fp32 [B]; ``None`` for one ball for all."""
        radius = self.config.radius
        if not (radius.share or radius.ramp_share):
            return None
        scale = ramp(radius.ramp_share, progress.epoch, progress.epochs) * class_radii(self.class_counts, radius.share)
        return scale.float()[batch.labels]

    def attack(self, model: nn.Module, batch: Batch, progress: Progress, generator: torch.Generator) -> Tensor:
        """Adversarial images [B, C, H, W] in [0, 1] for a batch, without gradient."""
        settings = self.config.attack
        threat, step = scaled(*self.training_ball(), self.radius_scale(batch, progress))
        with attack_mode(model, settings.mode):
            objective = self.objective(model, batch)
        x_adv = pgd(
            model,
            batch.images,
            batch.labels,
            threat=threat,
            steps=settings.steps,
            step_size=step,
            start=settings.start,
            objective=objective,
            mode=settings.mode,
            generator=generator,
            precision=self.config.train.precision,
            fold=settings.fold,
            validate=False,
        )
        if settings.final_forward and settings.mode == "train":
            final_forward(model, x_adv)
        return x_adv

    def loss(self, model: nn.Module, batch: Batch, x_adv: Tensor, progress: Progress) -> LossTerms:
        """The loss of the outer minimisation; ``model`` is in training mode."""
        raise NotImplementedError

    def perturbed_weights(
        self, model: nn.Module, batch: Batch, x_adv: Tensor, progress: Progress
    ) -> AbstractContextManager[Any]:
        """A context in which loss and gradient are taken at perturbed weights, restored on leaving (AWP)."""
        awp = self.config.awp
        if not awp.gamma or progress.epoch <= awp.warmup:
            return nullcontext()
        return adversarial_weights(model, lambda: self.loss(model, batch, x_adv, progress).loss, awp.gamma)

    @unread_by_loss
    def end_step(self, model: nn.Module, batch: Batch, terms: LossTerms) -> None:
        """Called after every optimiser step with the changed network, in training mode, and what its loss returned."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive an interruption, as tensors, numbers and strings only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        del state

    @property
    def corrects_prior(self) -> bool:
        """Whether the loss makes up for the class frequencies, so that a post-hoc adjustment does so twice."""
        return False

    @property
    def log_prior(self) -> Tensor:
        """log n_c of the images that the epoch serves, [C]; a class without any counts as one of one image."""
        return self.class_counts.clamp(min=1).float().log()
