"""What is checked of every tensor and number that comes from outside."""

from numbers import Real

import numpy as np
import torch
from torch import Tensor

from ltat.errors import LtatError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
"""The element types of the kernels."""


def require_tensors(**values: object) -> None:
    """Refuses NumPy arrays, sparse tensors and anything else but a dense tensor, by the name of the argument.

    Raises:
        LtatError: naming the first argument that is not a dense tensor.
    """
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise LtatError(f"{name} is a {_kind(value)}; give a torch tensor")
        if value.layout != torch.strided:
            raise LtatError(f"{name} is a tensor of layout {value.layout}; convert it with to_dense()")


def require_one_kind(name: str, reference: Tensor, **others: Tensor) -> None:
    """Refuses a ``reference`` that is no floating-point tensor of the kernels, and others unlike it.

    Raises:
        LtatError: naming the first tensor whose shape, device or dtype does not fit.
    """
    if reference.dtype not in FLOATS:
        raise LtatError(f"{name} is {reference.dtype}; convert it to {_names(FLOATS)}")
    for other, tensor in others.items():
        if tensor.shape != reference.shape:
            shapes = f"{other} has shape {tuple(tensor.shape)}, {name} {tuple(reference.shape)}"
            raise LtatError(f"{shapes}; give them one shape")
        if tensor.device != reference.device:
            raise LtatError(f"{other} lies on {tensor.device}, {name} on {reference.device}; move them to one device")
        if tensor.dtype != reference.dtype:
            raise LtatError(f"{other} is {tensor.dtype}, {name} {reference.dtype}; convert them to one dtype")


def require_per_channel(name: str, reference: Tensor, **values: Tensor) -> None:
    """Refuses values that are not one float32 for each channel, the second dimension of ``reference``.

    Raises:
        LtatError: naming the first that does not fit, or a ``reference`` without channels.
    """
    require_tensors(**values)
    if reference.ndim < 2:
        shape = tuple(reference.shape)
        raise LtatError(f"{name} has shape {shape}, which has no channels; give a tensor [B, ch, ...]")
    for other, tensor in values.items():
        channels = reference.shape[1]
        if tensor.shape != (channels,) or tensor.dtype != torch.float32 or tensor.device != reference.device:
            raise LtatError(
                f"{other} is a {tensor.dtype} tensor {tuple(tensor.shape)} on {tensor.device}; "
                f"give float32 [{channels}] on {reference.device}"
            )


def plain(tensor: Tensor) -> Tensor:
    """The tensor without its gradient, as the operators take it."""
    return tensor.detach() if tensor.requires_grad else tensor


def number(name: str, value: object, wanted: str = "a number") -> float:
    """A Python or NumPy number as a float; ``wanted`` ends the sentence that refuses anything else.

    Raises:
        LtatError: ``value`` is not a real number (a bool is not), or too large for a float.
    """
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise LtatError(f"{name} is {_quoted(value)}; give {wanted}")
    try:
        return float(value)
    except OverflowError:
        raise LtatError(f"{name} is too large for a float; give {wanted}") from None


def flag(name: str, value: object) -> bool:
    """A Python or NumPy bool as a bool.

    Raises:
        LtatError: ``value`` is anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise LtatError(f"{name} is {_quoted(value)}; give True or False")
    return bool(value)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _quoted(value: object) -> str:
    """The value itself where it is short, its kind where it is not."""
    return (
        repr(value) if isinstance(value, str | bool | complex | None) and len(repr(value)) < 60 else f"a {_kind(value)}"
    )


def _kind(value: object) -> str:
    return "numpy array" if isinstance(value, np.ndarray) else f"value of type {type(value).__name__}"
