"""How many workers may read or write images."""

import os

from ltat.errors import LtatError
from ltat.torchrun import processes_here


def available_cores() -> set[int]:
    """The numbers of the cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cores() -> int:
    """How many cores this process may use; several ranks on one machine share them."""
    return max(1, len(available_cores()) // processes_here())


def resolve_workers(workers: int | None, least: int) -> int:
    """The number of workers: one core is left to the training where none is named.

    Raises:
        LtatError: fewer than ``least``, or more than there are cores.
    """
    if workers is None:
        return max(1, cores() - 1)
    if not least <= workers <= cores():
        raise LtatError(f"{workers} workers do not suit the {cores()} cores of this machine; choose {least}..{cores()}")
    return workers
