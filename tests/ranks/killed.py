"""`ltat` whose ranks are killed at chosen moments, one after every start of torchrun.

python -m torch.distributed.run … --max-restarts=2 -m tests.ranks.killed 1:open,0:step train …
"""

import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import ltat.training.run
import ltat.training.state_file
from ltat.cli import main
from ltat.torchrun import restarts
from ltat.training.run_folder import RunFolder
from ltat.training.trainer import Trainer


def at_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose call of that number, from 1, kills the process as the system does when memory is out."""
    calls = 0

    @wraps(function)
    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return counted


class Replacing:
    """The module os, for a process that ends between two steps of writing a state."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)
        os.kill(os.getpid(), signal.SIGKILL)


def kill_at(moment: str) -> None:
    """Let this process end at a moment."""
    if moment == "prepare":
        ltat.training.run.prepare = at_call(1, ltat.training.run.prepare)
    elif moment == "record":
        ltat.training.run.index_record = at_call(1, ltat.training.run.index_record)
    elif moment == "open":
        ltat.training.run.open_together = at_call(1, ltat.training.run.open_together)
    elif moment == "opening":
        RunFolder.open = at_call(1, RunFolder.open)  # type: ignore[method-assign]
    elif moment == "step":
        Trainer.train_step = at_call(30, Trainer.train_step)  # type: ignore[method-assign]
    elif moment == "state":
        ltat.training.state_file.os = Replacing()  # type: ignore[assignment]
    elif moment == "evaluation":
        ltat.training.run.evaluate_checkpoint = at_call(2, ltat.training.run.evaluate_checkpoint)
    else:
        raise ValueError(moment)


if __name__ == "__main__":
    moments = sys.argv.pop(1).split(",")
    if restarts() < len(moments):
        rank, moment = moments[restarts()].split(":")
        if rank == os.environ["RANK"]:
            kill_at(moment)
    main(prog_name="ltat")
