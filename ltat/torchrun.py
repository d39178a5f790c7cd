"""What the environment says of torchrun, which starts the ranks of a run; without torch, whose import takes long."""

import os
import platform


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
    """A name of this call of torchrun, the same after a restart: its process and machine, as seen by rank 0."""
    return f"launch {os.getppid()} on {platform.node()}"
