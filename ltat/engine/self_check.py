"""Whether a captured step gives the bits of the eager one: what it takes to run both from one state and compare.

An attack has no effects, so both are simply run. An update has: a :class:`Snapshot` puts back what the first of the two
has changed. Where they differ the eager one counts, and the run goes on without graphs.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ltat.engine.host_state import tensors_within

REPLAYS = 2
"""The replays that are checked: at the capture, and on the next batch, where a value frozen by the capture shows."""

OTHER_BITS = "its graph gives other bits than the same step launched kernel by kernel"
NOT_REPEATABLE = (
    "launched kernel by kernel twice, one step gives two results, so its graph cannot be checked; "
    "train.deterministic=true makes them equal, train.graph=true captures it unchecked"
)
NO_MEMORY = "there is no memory for the copies that the check of its graph needs"

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Snapshot:
    """The values of tensors, and the state of their device's generator, at one moment.

    Args:
        tensors: those of other devices are left out: no graph reads or writes them.
        device: of the graph.

    Raises:
        torch.OutOfMemoryError: the copies do not fit.
    """

    def __init__(self, tensors: Iterable[Tensor], device: torch.device) -> None:
        self.tensors = list({id(tensor): tensor for tensor in tensors if tensor.device == device}.values())
        self.values = [tensor.detach().clone() for tensor in self.tensors]
        self.generator = _generator(device)
        self.drawn = self.generator.get_state()

    @torch.no_grad()
    def renew(self) -> None:
        """Take the present values, into the same memory."""
        for tensor, value in zip(self.tensors, self.values, strict=True):
            value.copy_(tensor)
        self.drawn = self.generator.get_state()

    @torch.no_grad()
    def put_back(self) -> None:
        """Make everything what it was."""
        for tensor, value in zip(self.tensors, self.values, strict=True):
            if not same_bits(tensor, value):  # what nobody wrote may be such as cannot be written, an expanded view
                tensor.copy_(value)
        if not torch.equal(self.generator.get_state(), self.drawn):
            self.generator.set_state(self.drawn)

    def holds(self) -> bool:
        """Whether everything is as it was, bit for bit."""
        return same_bits(self.tensors, self.values) and torch.equal(self.generator.get_state(), self.drawn)


def changed_by_update(model: nn.Module, optimizer: torch.optim.Optimizer, method: object) -> Iterator[Tensor]:
    """The tensors of the network, of the optimiser's state and of the method: an update changes no other."""
    yield from (*model.parameters(), *model.buffers())
    for kept in optimizer.state.values():
        yield from (value for value in kept.values() if isinstance(value, Tensor))
    yield from tensors_within(method)


def same_bits(one: Any, other: Any) -> bool:
    """Whether two nests of tuples, lists and dictionaries hold equal tensors: NaN equals itself, and 0 is not -0."""
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    return all(_bits_equal(a, b) for a, b in pairs)


def _bits_equal(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = _BITS[one.element_size()]
    return torch.equal(one.detach().view(bits), other.detach().view(bits))


def _tensors(nest: Any) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    else:
        for part in nest.values() if isinstance(nest, dict) else nest:
            yield from _tensors(part)


def _generator(device: torch.device) -> torch.Generator:
    if device.type != "cuda":
        return torch.default_generator
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
