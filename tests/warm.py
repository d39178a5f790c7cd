"""Programs that begin with torch and ltat imported: forks of one process, for tests of what comes after the start.

An interpreter imports for longer than all that a tiny run does, and torchrun starts one for every rank, again after
each failure. Here torchrun itself and its ranks are forks; all else is theirs: processes, signals, exit codes, output.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Self

import torch
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.warm", "tests.ranks.cases", "ltat.cli.train", "torch.distributed.run"])
SECONDS = 600.0  # after which a program is taken to hang
TORCHRUN = "torch.distributed.run"


class Forked:
    """`python -m …` in a fork; what torchrun needs of a ``subprocess.Popen``."""

    def __init__(self, context: BaseContext, *given: Any) -> None:
        self._process = context.Process(target=_run, args=given)  # type: ignore[attr-defined]
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative after a signal; None while it runs."""
        code: int | None = self._process.exitcode
        return code

    def poll(self) -> int | None:
        """The exit code, or None."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Raises:
            subprocess.TimeoutExpired: it is still running after ``timeout`` seconds.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a forked program", timeout or 0.0)
        return self.returncode


class Program(Forked):
    """`python -m MODULE ARGUMENTS`, which is killed when the block that it is used for ends."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._said = tempfile.TemporaryDirectory()
        super().__init__(FORKS, (module, *arguments), dict(os.environ), self._said.name)

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def communicate(self, timeout: float = SECONDS) -> tuple[str, str]:
        """Wait for the end; returns standard output and standard error."""
        self.wait(timeout)
        return Path(self._said.name, "1").read_text(), Path(self._said.name, "2").read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)  # torchrun ends its ranks
            self.wait()
        self._said.cleanup()


def ended(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """What is left of `python -m MODULE ARGUMENTS` at its end."""
    with Program(module, *arguments) as program:
        output, errors = program.communicate()
        return subprocess.CompletedProcess([module, *arguments], program.wait(), output, errors)


def _run(command: Sequence[str], environment: dict[str, str], said: str | None) -> None:
    """Become `python -m COMMAND`; without a folder for what is said, as a process that torchrun starts."""
    os.environ.clear()
    os.environ.update(environment)
    _open_streams(said)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    SubprocessHandler._popen = _fork_rank  # type: ignore[method-assign]
    sys.argv = list(command)
    sys.modules.pop(command[0], None)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def _open_streams(said: str | None) -> None:
    if said is None:
        os.setsid()
        os.closerange(3, 4096)  # torchrun's sockets
        return
    for descriptor in (1, 2):
        file = os.open(f"{said}/{descriptor}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)


def _fork_rank(handler: SubprocessHandler, command: Sequence[str], environment: dict[str, str]) -> Forked:
    return Forked(multiprocessing.get_context("fork"), command[command.index("-m") + 1 :], environment, None)
