"""A CUDA graph for a CPU: the operations of a run, to be run again on the same memory."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Of these a graph on a GPU cannot hold any: they wait for the device, or draw from a generator of the host.
HOST = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "lift_fresh", "rand", "normal", "uniform", "bernoulli")


class Tape(TorchDispatchMode):
    """The operations; whatever Python decided while they were recorded is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self.overwritten: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.inplace_view in func.tags:  # changes the shape that Python sees, and no memory
            return func(*args, **(kwargs or {}))
        self.overwritten += [(tensor, tensor.clone()) for tensor in written(func, args, kwargs or {})]
        result = func(*args, **(kwargs or {}))
        kept = tree_map_only(Tensor, Tensor.detach, result)  # with the shape of now
        self.calls.append((func, args, kwargs or {}, kept))
        return result

    @property
    def waits(self) -> list[str]:
        """Which of :data:`HOST` were called."""
        return [name for func, *_ in self.calls if (name := func.overloadpacket.__name__).startswith(HOST)]

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # else a view, or written in place
                    old.copy_(new)

    @torch.no_grad()
    def undo(self) -> None:
        """Put back all that was written in place: recording on a GPU executes nothing."""
        while self.overwritten:
            tensor, value = self.overwritten.pop()
            tensor.copy_(value)


def written(func, args, kwargs) -> list[Tensor]:
    """The tensors into which an operation writes, by its schema; batch norm's does not tell its running statistics."""
    given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    marked = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    if "batch_norm" in func._schema.name and "backward" not in func._schema.name:
        marked |= {"running_mean", "running_var"}
    return [leaf for name in marked for leaf in tree_leaves(given.get(name)) if isinstance(leaf, Tensor)]


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


class UpdateRecorder(Recorder):
    """A capture of functions with effects, in place of ``CudaRecorder``."""

    def __init__(self) -> None:
        super().__init__()
        self.eager = 0
        self.discarded = 0

    def discard(self):
        self.discarded += 1

    def eagerly(self, function):
        self.eager += 1
        return function()

    def record(self, function):
        replay, output = self(function, None)
        self.tapes[-1].undo()
        return replay, output
