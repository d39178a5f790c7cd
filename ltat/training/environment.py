"""The device of a run, its determinism, and the record of the machine it ran on."""

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ltat import __version__, native
from ltat.errors import LtatError
from ltat.installed import package_versions, source_commit
from ltat.ranks import ALONE, Ranks


def pick_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """The device called ``name``; ``auto`` is the GPU, or the CPU on a machine without one.

    Of several ``ranks`` each has the GPU of its own number on its machine, which becomes torch's current one.

    Raises:
        LtatError: an unknown device, a GPU that torch does not see, or one GPU for several ranks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise LtatError(f"there is no device {name!r}; use auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise LtatError(f"device {name!r} is not supported; use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise LtatError(f"device {name!r} was asked for and torch sees no GPU; use --device cpu, or see `ltat doctor`")
    return device if device.type == "cpu" or ranks.size == 1 else _gpu_of(ranks, device)


def _gpu_of(ranks: Ranks, device: torch.device) -> torch.device:
    there = torch.cuda.device_count()
    if device.index is not None:
        raise LtatError(f"device {str(device)!r} is one GPU and there are {ranks.size} ranks; use --device cuda")
    if ranks.local >= there:
        raise LtatError(f"rank {ranks.rank} needs a GPU of its own and there are {there}; start {there} per machine")
    torch.cuda.set_device(ranks.local)  # else what names no device would take memory on the first one
    return torch.device("cuda", ranks.local)


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """With ``wanted``, torch uses only deterministic algorithms inside; otherwise cuDNN benchmarks its algorithms.

    On leaving, the previous settings are restored.
    """
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    try:
        if wanted:
            torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = not (wanted or enabled)
        yield
    finally:
        if wanted:  # the call imports torch's compiler, for seconds
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def environment_record(device: torch.device, ranks: Ranks = ALONE) -> dict[str, Any]:
    """The content of ``env.json``: versions and commit, machine, device and the native build."""
    return {
        "ltat": __version__,
        "commit": source_commit(),
        "machine": platform.node(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "ranks": ranks.size,
        "native": native.build_info(),
        "command": sys.argv[1:],
    }
