"""S(x + delta) and S(x - delta): two batches for batch norm, one, or the second without a trace."""

import torch
from torch import Tensor, nn

from ltat.attacks import frozen_batch_norm_statistics


def one_forward(model: nn.Module, x_plus: Tensor, x_minus: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, C] of both [B, C, H, W] from one forward, so that batch norm takes its statistics over both."""
    plus, minus = model(torch.cat([x_plus, x_minus])).chunk(2)
    return plus, minus


def frozen_forward(model: nn.Module, x_minus: Tensor) -> Tensor:
    """Logits [B, C] of a forward that does not move the running statistics."""
    with frozen_batch_norm_statistics(model):
        return model(x_minus)


def _two_forwards(model: nn.Module, x_plus: Tensor, x_minus: Tensor) -> tuple[Tensor, Tensor]:
    return model(x_plus), model(x_minus)


def _frozen_second_forward(model: nn.Module, x_plus: Tensor, x_minus: Tensor) -> tuple[Tensor, Tensor]:
    return model(x_plus), frozen_forward(model, x_minus)


STUDENT_FORWARDS = {"two": _two_forwards, "concat": one_forward, "freeze_minus": _frozen_second_forward}
"""By the value of ``kd.bn``."""
