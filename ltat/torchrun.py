"""What the environment says of torchrun, which starts the ranks of a run; without torch, whose import takes long."""

import os
import platform
from pathlib import Path


def launched_by_torchrun() -> bool:
    """Whether torchrun has started this process as one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def leads() -> bool:
    """Whether this process shows what all of them would show."""
    return not launched_by_torchrun() or os.environ["RANK"] == "0"


def processes_here() -> int:
    """How many processes of the run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched_by_torchrun() else 1


def restarts() -> int:
    """How often torchrun has started the ranks again, after one of them failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def launch_name() -> str:
    """A name of this call of torchrun, the same after a restart: its process and machine, as seen by rank 0.

    The number of a process is given again, in containers soon, so the moment of its start belongs to the name.
    """
    parent = os.getppid()
    return f"launch {parent} of {_start_of(parent)} on {platform.node()}"


def _start_of(process: int) -> str:
    """When a process began, in ticks since the machine did; "?" where the system does not say it like Linux."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return "?"


def repeated() -> str:
    """How the command begins that starts as many ranks once more."""
    if not launched_by_torchrun():
        return "ltat"
    machines = int(os.environ["WORLD_SIZE"]) // processes_here()
    return f"torchrun --nproc-per-node {processes_here()} {'' if machines == 1 else f'--nnodes {machines} … '}-m ltat"
