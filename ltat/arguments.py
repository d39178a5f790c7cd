"""Arguments of public functions, brought into their type once, where they come in."""

import math
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ltat.errors import LtatError


def as_number(name: str, value: object, advice: str) -> float:
    """A number of Python, NumPy or a tensor of one element without shape, as a finite ``float``.

    Raises:
        LtatError: it is not a number, or not finite; ``advice`` is the remedy.
    """
    plain = _unpacked(value)
    if not isinstance(plain, Real) or isinstance(plain, bool | np.bool_):
        raise LtatError(f"{name} is {shown(value)}; {advice}")
    try:
        number = float(plain)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise LtatError(f"{name} is {number}; {advice}")
    return number


def as_whole(name: str, value: object, least: int, largest: int | None = None) -> int:
    """A whole number of Python, NumPy or a tensor of one element without shape, as an ``int``.

    Raises:
        LtatError: it is not whole, or not between ``least`` and ``largest``, which may be left open.
    """
    plain = _unpacked(value)
    whole = isinstance(plain, Integral) and not isinstance(plain, bool | np.bool_)
    if not whole or int(plain) < least or (largest is not None and int(plain) > largest):
        above = "or more" if largest is None else f"to {largest}"
        raise LtatError(f"{name} is {shown(value)}; give a whole number, {least} {above}")
    return int(plain)


def as_path(name: str, value: object) -> Path:
    """A path, or a string that names one.

    Raises:
        LtatError: it is not a path.
    """
    if not isinstance(value, str | PathLike):
        raise LtatError(f"{name} is {shown(value)}; give a path")
    return Path(value)


def shown(value: object) -> str:
    """``repr`` in one line of at most 60 characters."""
    try:
        line = " ".join(repr(value).split())
    except ValueError:  # an integer of more digits than Python prints
        line = f"a {type(value).__name__} too long to print"
    return line if len(line) <= 60 else f"{line[:57]}..."


def _unpacked(value: object) -> Any:
    """The value of a tensor or array without shape; anything else unchanged."""
    return value.item() if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 else value
