"""The training attack of every method: PGD on its objective, by the settings of ``attack`` and ``radius``."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ltat.attacks import STARTS, Objective, ThreatModel, pgd
from ltat.attacks.modes import attack_mode
from ltat.config import RunConfig
from ltat.errors import LtatError
from ltat.methods.objectives import check_inner_loss
from ltat.methods.radius import radius_scale, scaled
from ltat.methods.step import Step


def check_attack(config: RunConfig, teacher: nn.Module | None) -> None:
    """Check that the training attack can run.

    Raises:
        LtatError: an unknown objective or start, or an objective that the start or a missing teacher rules out.
    """
    check_inner_loss(config.attack.loss, config.attack.start, teacher)
    if config.attack.start not in STARTS:
        raise LtatError(f"attack.start={config.attack.start} is unknown; choose one of {', '.join(STARTS)}")


def training_attack(
    step: Step,
    config: RunConfig,
    objective: Callable[[Step], Objective],
    threat: ThreatModel,
    *,
    step_size: float | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Adversarial images [B, ch, H, W] in [0, 1] for a batch, without gradient.

    Args:
        step: the batch and the network.
        config: of the run.
        objective: builds the loss per image to ascend; called with the network in the mode of the attack.
        threat: the ball, built once per run because its checks would cost time in every step.
        step_size: in pixel units; that of ``config`` if None.
        scale: factor on radius and step size of each image, fp32 [B], on top of that of ``config.radius``.
    """
    settings = config.attack
    by_class = radius_scale(config.radius, step)
    scale = by_class if scale is None else scale if by_class is None else scale * by_class
    threat, size = scaled(threat, settings.step_size if step_size is None else step_size, scale)
    with attack_mode(step.model, settings.mode):
        built = objective(step)
    x_adv = pgd(
        step.model,
        step.batch.images,
        step.batch.labels,
        threat=threat,
        steps=settings.steps,
        step_size=size,
        start=settings.start,
        objective=built,
        mode=settings.mode,
        generator=step.generator,
        precision=config.train.precision,
        fold=settings.fold,
        validate=False,
    )
    if settings.final_forward and settings.mode == "train":
        final_forward(step.model, x_adv)
    return x_adv


def final_forward(model: nn.Module, x_adv: Tensor) -> None:
    """Run the finished x' [B, ch, H, W] through the network in training mode, as some reference codes do."""
    with torch.no_grad(), attack_mode(model, "train"):
        model(x_adv)
