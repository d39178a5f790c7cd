"""How many workers may read or write images."""

import os

from ltat.errors import LtatError


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
