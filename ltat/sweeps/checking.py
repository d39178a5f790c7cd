"""Trying every part of some runs before the first starts."""

import subprocess
import sys
from collections.abc import Iterable

import torch

from ltat.errors import LtatError
from ltat.sweeps.plans import RunPlan
from ltat.training import prepare

WRONG_USE = 2


def check_plans(plans: Iterable[RunPlan]) -> None:
    """Build and rehearse the first run of each row of the table, as :func:`ltat.training.prepare` does.

    Where there is a GPU, another process does, because one that has used a GPU keeps memory on it.

    Raises:
        LtatError: the first error that would stop a run.
    """
    first: dict[str, RunPlan] = {}
    for plan in plans:
        first.setdefault(plan.row, plan)
    if torch.cuda.is_available() and first:
        check_in_process(first.values())
    else:
        for plan in first.values():
            check(plan)


def check(plan: RunPlan) -> None:
    """Build and rehearse a run.

    Raises:
        LtatError: an error that would stop it, with the name of the run.
    """
    try:
        prepare(plan.asked())
    except LtatError as error:
        raise LtatError(f"{plan.name}: {error}") from None


def check_in_process(plans: Iterable[RunPlan]) -> None:
    """:func:`check` each plan in a process of its own.

    Raises:
        LtatError: the first error.
    """
    lines = "".join(f"{plan.to_json()}\n" for plan in plans)
    command = [sys.executable, "-m", "ltat.sweeps", "check"]
    # In a session of its own, Ctrl-C does not reach the process; subprocess.run ends it then.
    done = subprocess.run(command, input=lines, stdout=subprocess.PIPE, text=True, check=False, start_new_session=True)
    if done.returncode:
        raise LtatError(
            done.stdout.strip() or f"trying the runs ended with code {done.returncode}; see the output above"
        )


def main() -> int:
    """Try the runs of the input, a plan on each line; the first error is printed."""
    try:
        for line in sys.stdin:
            check(RunPlan.from_json(line))
    except LtatError as error:
        print(error)
        return WRONG_USE
    return 0
