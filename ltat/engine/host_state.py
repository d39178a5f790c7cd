"""What Python holds and a CUDA graph does not see: attributes of an object, and the generators of the host.

A replay runs kernels alone. A number that Python would compute anew, or a tensor that it would put in the place of
another, stays what it was at the capture. This module finds such changes between two steps.
"""

import io
import pickle
import random
from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

BY_IDENTITY = (nn.Module, BaseModel, FunctionType, MethodType, type)  # their tensors are read where they lie


class Attributes:
    """The attributes of an object as they are now: tensors by identity, everything else by value.

    A tensor of ``device`` may be written in place, since a replay reads it; one of another device may not.
    """

    def __init__(self, owner: object, device: torch.device) -> None:
        self._kept: list[object] = []  # while they live, no other object has their identity
        self._values = {name: self._value(value, device) for name, value in vars(owner).items()}

    def changed(self, later: "Attributes") -> str | None:
        """The name of an attribute that is another one in ``later``; ``None`` where there is none."""
        names = self._values.keys() | later._values.keys()
        return next((name for name in sorted(names) if self._values.get(name) != later._values.get(name)), None)

    def _value(self, value: object, device: torch.device) -> object:
        file = io.BytesIO()
        try:
            _Writer(file, self._kept, device).dump(value)
        except Exception:  # an object may raise anything where it cannot be pickled
            self._kept.append(value)
            return id(value)
        return file.getvalue()


def tensors_within(owner: object) -> Iterator[Tensor]:
    """The tensors that the attributes of an object hold, also in containers and objects, and those of its networks.

    Of an attribute that cannot be pickled only what comes before the obstacle is found.
    """
    found: list[object] = []
    for value in vars(owner).values():
        with suppress(Exception):  # an object may raise anything where it cannot be pickled
            _Writer(io.BytesIO(), found, torch.device("cpu")).dump(value)
    for part in found:
        if isinstance(part, nn.Module):
            yield from (*part.parameters(), *part.buffers())
        elif isinstance(part, Tensor):
            yield part


class _Writer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, kept: list[object], device: torch.device) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.kept, self.device = kept, device

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            self.kept.append(value)
            return id(value), value.data_ptr(), None if value.device == self.device else value._version
        if isinstance(value, BY_IDENTITY):
            self.kept.append(value)
            return id(value)
        return None


def host_generators() -> bytes:
    """The state of the generators that Python, NumPy and torch draw from on the host when given no other."""
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()))
