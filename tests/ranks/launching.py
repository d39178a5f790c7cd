"""Starting several ranks on this machine by torchrun."""

import subprocess
import sys

from tests.warm import TORCHRUN, ended


def launch(ranks: int, module: str, *arguments: str, restarts: int = 0) -> tuple[str, ...]:
    """The words after `python -m` that run a module on several ranks, on a free port."""
    options = ("--standalone", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}")
    return (TORCHRUN, *options, "-m", module, *arguments)


def torchrun(ranks: int, module: str, *arguments: str, restarts: int = 0) -> "subprocess.CompletedProcess[str]":
    """A module on several ranks, which are forks of one process."""
    return ended(*launch(ranks, module, *arguments, restarts=restarts))


def fresh_torchrun(ranks: int, module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A module on several ranks, each of them an interpreter that torchrun starts."""
    command = [sys.executable, "-m", *launch(ranks, module, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
