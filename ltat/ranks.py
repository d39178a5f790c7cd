"""The processes of one run: which part of a batch is whose, and what they tell each other.

A run is started by ``torchrun``, with one process (a rank) per device. Every rank has the whole network and computes
its share of each batch. This module is the only one that knows torch.distributed.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.rendezvous import rendezvous

from ltat.errors import LtatError
from ltat.torchrun import launched_by_torchrun, leads, restarts

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others: as long as rank 0 may write, or one of them read a data set."""


T = TypeVar("T")


class RankEnded(LtatError):
    """Another rank has ended, so that this one cannot go on."""


@dataclass(frozen=True)
class Share:
    """The rows ``first`` to ``last`` (exclusive) of a batch of ``total`` rows."""

    first: int
    last: int
    total: int

    def __len__(self) -> int:
        return self.last - self.first

    @property
    def rows(self) -> slice:
        """The rows, as a slice of the batch."""
        return slice(self.first, self.last)


@dataclass(frozen=True)
class Ranks:
    """One of the ``size`` processes of a run; ``local`` is its number on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def leads(self) -> bool:
        """Whether this rank writes the files and shows the progress."""
        return self.rank == 0

    def share(self, total: int) -> Share:
        """This rank's rows of a batch: shares differ by at most one row, and the first ranks have the longer ones."""
        least, longer = divmod(total, self.size)
        first = self.rank * least + min(self.rank, longer)
        return Share(first, first + least + (self.rank < longer), total)

    def turns(self, count: int) -> range:
        """The numbers below ``count`` that are this rank's, where the ranks take turns."""
        return range(self.rank, count, self.size)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, all in one message."""
        if self.size > 1 and tensors:
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
            dist.all_reduce(flat)
            scatter_(flat, tensors)

    def stacked(self, own: Tensor) -> Tensor:
        """``own`` [n] of every rank, as rows [ranks, n] in their order."""
        rows = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(rows, own)
        return torch.stack(rows)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, all in one message."""
        if self.size > 1 and tensors:
            self.send_mean(tensors).wait_into(tensors)

    def send_mean(self, tensors: Sequence[Tensor]) -> "Message":
        """Begin to compute the mean of each tensor over the ranks; the others must send theirs in the same order."""
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).div_(self.size)
        return Message(flat, dist.all_reduce(flat, async_op=True))

    def joined(self, rows: Tensor, share: Share) -> Tensor:
        """The rows of all ranks, [c · total, ...], from this rank's [c · len(share), ...], with gradient.

        ``rows`` are c blocks, one for each of c batches that went through the network together; the result has the
        blocks of the whole batch in the same order. Every rank computes the loss of the whole batch from it, and takes
        back the gradient of its own rows, times the number of ranks: the *mean* over the ranks of the gradients with
        respect to the weights is then the gradient of that loss.
        """
        return rows if self.size == 1 else _Joined.apply(rows, share, self.size)

    def told(self, value: Any) -> Any:
        """``value`` of rank 0, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on every rank.

        Raises:
            RankEnded: another rank has ended.
        """
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with others_endings_reported():
            dist.all_gather_object(values, value)
        return values

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """Inside, the other ranks find what rank 0 has left there: they enter when it has come out."""
        if not self.leads:
            self.meet()
        yield
        if self.leads:
            self.meet()

    def any_(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each flag is set on any rank."""
        if self.size == 1:
            return flags
        counts = torch.tensor(flags, dtype=torch.int64)
        dist.all_reduce(counts)
        return tuple(map(bool, counts.tolist()))

    def meet(self) -> None:
        """Wait until every rank has come here."""
        self.told(None)


class Tally:
    """A number to which all ranks add without waiting for each other.

    Args:
        ranks: they all make the tally.
        name: the same on all ranks, and of no other tally of the launch.
    """

    def __init__(self, ranks: Ranks, name: str) -> None:
        self._name = name
        self._store = None if ranks.size == 1 else dist.distributed_c10d._get_default_store()
        self._own = 0

    def add(self, amount: int) -> int:
        """Add ``amount``; returns what all ranks have added so far.

        Raises:
            RankEnded: another rank has ended.
        """
        if self._store is None:
            self._own += amount
            return self._own
        with others_endings_reported():
            return int(self._store.add(self._name, amount))


@dataclass(frozen=True)
class Message:
    """Numbers on their way to the other ranks."""

    flat: Tensor
    work: Any

    def wait_into(self, tensors: Sequence[Tensor]) -> None:
        """Wait for the result, and write it into ``tensors``."""
        self.work.wait()
        scatter_(self.flat, tensors)


ALONE = Ranks()
"""A run of one process."""


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, share: Share, size: int) -> Tensor:
        ctx.share, ctx.size = share, size
        blocks = rows.unflatten(0, (-1, len(share)))
        whole = rows.new_zeros(len(blocks), share.total, *rows.shape[1:])
        whole[:, share.rows] = blocks
        dist.all_reduce(whole)  # of zeros and the rows of one rank each: no rounding
        return whole.flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        blocks = gradients[0].unflatten(0, (-1, ctx.share.total))
        return blocks[:, ctx.share.rows].flatten(0, 1) * ctx.size, None, None


def scatter_(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write the parts of ``flat`` into ``tensors``, in their order."""
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


@contextmanager
def ranks_of_torchrun() -> Iterator[Ranks]:
    """The ranks that torchrun has started, connected while inside; :data:`ALONE` without torchrun.

    Raises:
        LtatError: they cannot be connected.
        RankEnded: another rank has ended.
    """
    if not launched_by_torchrun():
        yield ALONE
        return
    connect()
    with others_endings_reported():
        yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ["LOCAL_RANK"]))
    dist.destroy_process_group()  # not after a failure, when it could wait for a rank that is no more


def connect() -> None:
    """Connect this rank with the others.

    Raises:
        LtatError: the environment is not as torchrun sets it, or the others cannot be reached.
    """
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise LtatError(
                f"RANK and WORLD_SIZE are set and {name} is not; start the ranks by torchrun, or unset RANK"
            )
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group(backend, store=_store(PATIENCE), rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise LtatError(
            f"the ranks cannot be connected ({reason}); check torchrun's options and the network"
        ) from error


@contextmanager
def others_endings_reported() -> Iterator[None]:
    """The end of another rank as a sentence; torch raises it as what the connection then says.

    Raises:
        RankEnded: another rank has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(mark in str(error) for mark in ("gloo", "NCCL")):
            raise
        place, _, reason = str(error).partition("\n")[0].partition(". ")[0].rpartition(".cc:")
        reason = reason.partition("] ")[2] if place else reason  # the line of gloo's code helps nobody
        raise RankEnded(f"another rank ended ({reason}); start the command again, training with --resume") from error


def first_to_fail() -> bool:
    """Whether this rank is the first of the run to fail, which then says why; the others end in silence."""
    if not launched_by_torchrun():
        return True
    try:
        return bool(_store(timedelta(seconds=10)).add("failures", 1) == 1)
    except (RuntimeError, ValueError, KeyError):
        return leads()


def _store(timeout: timedelta) -> Any:
    """Torchrun's store, which is there before the ranks are connected.

    It outlives them, so every start has its own part: else ranks that are restarted would find the addresses of those
    that have ended, and wait for them.
    """
    store = next(rendezvous("env://", timeout=timeout))[0]
    return dist.distributed_c10d.PrefixStore(f"ltat {restarts()} {os.environ['WORLD_SIZE']}", store)
