"""Batch norms that a folded copy must not take for the identity."""

from torch import nn


def moved_from_identity(model: nn.Module, mean: float = 0.1) -> None:
    """Draw weights, biases and statistics of every batch norm; its running means lie within ``mean`` of 0."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            nn.init.uniform_(norm.running_mean, -mean, mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
