"""Stochastic gradient descent, by the ``optim`` settings."""

import inspect
from typing import Any

import torch
from torch import nn

from ltat.config import OptimSection


class UncompiledSGD(torch.optim.SGD):
    """SGD that is never part of a compiled function: torch wraps these methods, and the wrappers import its compiler,
    which takes longer than torch itself."""

    add_param_group = inspect.unwrap(torch.optim.SGD.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.SGD.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.SGD.state_dict)
    zero_grad = inspect.unwrap(torch.optim.SGD.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


def build_optimizer(model: nn.Module, settings: OptimSection, scaled: bool = False) -> torch.optim.SGD:
    """SGD over the model's parameters; with ``wd_skip_bn`` one-dimensional parameters have no weight decay.

    ``scaled`` is whether a gradient scaler calls it, which skips the steps that overflow.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1 or not settings.wd_skip_bn]
    spared = [p for p in model.parameters() if p.ndim <= 1 and settings.wd_skip_bn]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    return UncompiledSGD(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.wd,
        nesterov=settings.nesterov,
        # The fused optimiser leaves momentum undefined when the first step is skipped. None and not False, because
        # with False torch updates tensor by tensor on a GPU too.
        fused=None if scaled else True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every parameter group to ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict and check that the momentum fits the weights.

    torch accepts momentum of any shape, and the fused step would read beyond its end.

    Raises:
        ValueError: the momentum has another shape than its weights.
    """
    optimizer.load_state_dict(state)
    for parameter, kept in optimizer.state.items():
        momentum = kept.get("momentum_buffer")
        if momentum is not None and momentum.shape != parameter.shape:
            raise ValueError(f"momentum {tuple(momentum.shape)} for weights {tuple(parameter.shape)}")
