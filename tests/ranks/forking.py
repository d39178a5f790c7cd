"""Ranks with the environment that torchrun gives them, without torchrun, and what the first of them returns."""

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ltat.ranks import ranks_of_torchrun
from tests.warm import FORKS, SECONDS


def run_ranks(size: int, folder: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function(ranks, *arguments)`` returns on rank 0 of ``size``; all of them run it.

    The function is one of a module, and its result made of tensors and containers of them.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    given = [(_environment(rank, size, port), folder, function, arguments) for rank in range(size)]
    processes = [FORKS.Process(target=_run, args=each, daemon=True) for each in given]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)
    finally:
        for process in processes:
            process.kill()
    failures = [file.read_text() for file in sorted(folder.glob("failed-*"))]
    assert not failures and all(process.exitcode == 0 for process in processes), failures or "a rank hangs"
    return torch.load(folder / "result.pt")


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": "localhost"}


def _run(environment: dict[str, str], folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ |= environment
    torch.set_num_threads(1)
    try:
        with ranks_of_torchrun() as ranks:
            result = function(ranks, *arguments)
            if ranks.leads:
                torch.save(result, folder / "result.pt")
    except Exception:
        (folder / f"failed-{environment['RANK']}").write_text(traceback.format_exc())
        raise
