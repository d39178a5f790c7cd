"""Lines that describe how the steps of a stage run: the network under attack, and which steps are CUDA graphs."""

import torch

from ltat.attacks.captured import why_not_captured
from ltat.attacks.modes import attack_mode
from ltat.data import Batch
from ltat.training.run_data import RunData, first_images
from ltat.training.stage import Stage
from ltat.training.trainer import Trainer


def describe_ranks(stage: Stage) -> str:
    """How several ranks share each batch."""
    size = stage.loader.batch_size
    norms = "the whole batch" if stage.config.train.sync_bn else "each share (train.sync_bn=false)"
    return f"{stage.ranks.size} ranks share each batch of {size} images; batch norm sees {norms}"


def describe_attack(trainer: Trainer, data: RunData) -> str:
    """The form of the network that the training attack runs on, and with ``train.graph`` how its steps are launched."""
    attack = trainer.stage.config.attack
    folded = attack.fold and attack.mode == "eval"
    form = (
        trainer.network.describe_folded(first_images(data, 1, trainer.stage.device))
        if folded
        else f"the network itself: fold={attack.fold}, mode={attack.mode}"
    )
    return f"{form}{'' if trainer.network.graphs is None else describe_attack_launch(trainer, data)}"


def describe_attack_launch(trainer: Trainer, data: RunData) -> str:
    """Whether the attack's steps are one CUDA graph, or the reason why not."""
    stage, attack = trainer.stage, trainer.stage.config.attack
    if attack.mode != "eval":  # building an objective in another mode may change running statistics
        return f", step by step: mode={attack.mode}"
    image = torch.zeros(1, stage.model.in_channels, *data.train.images.shape[1:3], device=stage.device)
    first = torch.zeros(1, dtype=torch.long, device=stage.device)
    with attack_mode(trainer.network, attack.mode):
        objective = stage.method.objective(trainer.step(Batch(image, first, first), 1, 0, trainer.class_counts(1)))
    why = why_not_captured(trainer.network, objective, steps=attack.steps)
    return f", step by step: {why}" if why else ", one CUDA graph"


def describe_update(trainer: Trainer) -> str:
    """Whether the update is one CUDA graph, or the reason why not."""
    why = trainer.runner.why_not
    return f"step by step: {why}" if why else "as one CUDA graph"


def given_up(trainer: Trainer) -> dict[str, str]:
    """Why the attack or the update, which were to be captured, are launched step by step from now on, in words."""
    graphs = trainer.network.graphs
    found = {} if graphs is None else {"attack": graphs.why_not, "update": trainer.runner.why_not}
    return {part: why for part, why in found.items() if why is not None}
