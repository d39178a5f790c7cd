"""Checks that the tensors of a training are finite."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ltat.errors import LtatError

LIMIT = 1e18  # for weights, momentum and statistics: their squares still fit into fp32
INTERVAL = 50  # steps between two checks of the loss on a GPU, where each check waits for the device


def loss_is_due(device: torch.device, index: int) -> bool:
    """Whether to check the loss after the step ``index``, counted from 0."""
    return device.type == "cpu" or (index + 1) % INTERVAL == 0


def require_finite_loss(total: Tensor, stage: str, epoch: int) -> None:
    """Check the 0-dim sum of an epoch's losses so far.

    Raises:
        LtatError: it is not finite.
    """
    if not torch.isfinite(total):
        raise _diverged("loss", stage, epoch)


def require_finite_state(state: Mapping[str, object], stage: str, epoch: int) -> None:
    """Check the weights and the optimiser's state after an epoch.

    Raises:
        LtatError: a value is not finite, or above :data:`LIMIT`.
    """
    name = non_finite_tensor(state)
    if name:
        raise _diverged(f"tensor {name}", stage, epoch)


def _diverged(what: str, stage: str, epoch: int) -> LtatError:
    return LtatError(
        f"the {what} of stage {stage!r}: no longer finite, or huge, in epoch {epoch}; "
        "lower optim.lr, or train with --precision fp32"
    )


def non_finite_tensor(tree: object, name: str = "") -> str | None:
    """The dotted name of the first floating tensor in nested containers with NaN, infinity or a value above LIMIT."""
    if isinstance(tree, Tensor):
        finite = not tree.is_floating_point() or bool((tree.isfinite() & (tree.abs() <= LIMIT)).all())
        return None if finite else name
    parts = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    found = (non_finite_tensor(part, f"{name}.{key}" if name else str(key)) for key, part in parts)
    return next((where for where in found if where), None)
