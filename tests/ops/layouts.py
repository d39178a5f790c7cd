"""Tensors with the same numbers and every memory order a caller may bring."""

from collections.abc import Callable

import torch
from torch import Tensor


def _sliced(values: Tensor) -> Tensor:
    wide = values.new_zeros(*values.shape[:-1], 2 * values.shape[-1])
    wide[..., ::2] = values
    return wide[..., ::2]


def _channels_last(values: Tensor) -> Tensor:
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values.clone()


def _sliced_channels_last(values: Tensor) -> Tensor:
    if values.ndim != 4:
        return values.clone()
    wide = torch.cat([values, values], dim=1).contiguous(memory_format=torch.channels_last)
    return wide[:, : values.shape[1]]


def _transposed(values: Tensor) -> Tensor:
    return values.transpose(0, -1).contiguous().transpose(0, -1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda values: values.contiguous().clone(),
    "channels_last": _channels_last,
    "sliced": _sliced,
    "sliced_channels_last": _sliced_channels_last,
    "transposed": _transposed,
}


def shifted(tensor: Tensor) -> Tensor:
    """The same numbers, contiguous, one element past where the allocator puts a tensor."""
    return torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
