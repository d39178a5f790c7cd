"""What is checked of every tensor and number that comes from outside."""

from numbers import Real

import numpy as np
import torch
from torch import Tensor

from ltat.errors import LtatError


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


def _quoted(value: object) -> str:
    """The value itself where it is short, its kind where it is not."""
    return (
        repr(value) if isinstance(value, str | bool | complex | None) and len(repr(value)) < 60 else f"a {_kind(value)}"
    )


def _kind(value: object) -> str:
    return "numpy array" if isinstance(value, np.ndarray) else f"value of type {type(value).__name__}"
