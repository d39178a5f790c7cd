"""A CUDA graph for a CPU: the operations of a run, to be run again on the same memory."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """The operations; whatever Python decided while they were recorded is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # else a view, or written in place
                    old.copy_(new)


class Recorder:
    """A capture without a GPU."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    @property
    def captured(self) -> int:
        return len(self.tapes)

    def __call__(self, function, device):
        with Tape() as tape:
            output = function()
        self.tapes.append(tape)
        return tape.replay, output
