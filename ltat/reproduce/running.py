"""Carrying out the runs of a target within a budget of time, in their order."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltat.sweeps import Interrupted, RunPlan, SweepReporter, run_sweep
from ltat.sweeps.jobs import Jobs, Launcher
from ltat.sweeps.running import States, states_of
from ltat.sweeps.state import Records


class BudgetSpent(KeyboardInterrupt):
    """Stops a sweep as Ctrl-C does, so that each run leaves its state."""


@dataclass(frozen=True)
class WithinBudget:
    """A launcher that keeps the order of the runs and stops at a moment.

    The sweep tries no run in advance: each does when it starts, so that one that cannot run is reported like any other
    that fails, and the next ones follow.

    Attributes:
        launcher: carries the runs out.
        order: the names of the runs, the first to run first.
        end: when to stop, by ``time.monotonic()``; ``None`` without a budget.
    """

    launcher: Launcher
    order: Sequence[str]
    end: float | None = None
    here = False

    def begin(self, plans: Sequence[RunPlan], records: Records) -> Jobs:
        """See :class:`ltat.sweeps.jobs.Launcher`; a teacher comes just before its first student."""
        jobs = self.launcher.begin(sorted_runs(plans, self.order), records)
        return jobs if self.end is None else TimedJobs(jobs, self.end)


class TimedJobs:
    """Jobs that raise :class:`BudgetSpent` at a moment; see :class:`ltat.sweeps.jobs.Jobs`."""

    def __init__(self, jobs: Jobs, end: float) -> None:
        self._jobs, self._end = jobs, end
        self.seconds = jobs.seconds
        self.active, self.left, self.places, self.interrupt = jobs.active, jobs.left, jobs.places, jobs.interrupt

    def step(self) -> list[RunPlan]:
        """Take a step, unless the time is over and something is left to do."""
        if time.monotonic() >= self._end and self.left():
            raise BudgetSpent
        return self._jobs.step()


def sorted_runs(plans: Sequence[RunPlan], order: Sequence[str]) -> list[RunPlan]:
    """The runs in the order of their names; a teacher stands just before the first of its students."""
    place = {name: number for number, name in enumerate(order)}
    students = sorted((plan for plan in plans if not plan.only_teacher), key=lambda plan: place[plan.name])
    teachers = {plan.name: plan for plan in plans if plan.only_teacher}
    sequence: dict[str, RunPlan] = {}
    for plan in students:
        if plan.teacher is not None and plan.teacher.name in teachers:
            sequence.setdefault(plan.teacher.name, teachers[plan.teacher.name])
        sequence[plan.name] = plan
    return [*sequence.values(), *(plan for name, plan in teachers.items() if name not in sequence)]


def carry_out(
    plans: Sequence[RunPlan],
    launcher: Launcher,
    out: Path,
    end: float | None = None,
    reporter: SweepReporter | None = None,
) -> tuple[States, bool]:
    """Carry out the runs that are not finished, in their order.

    Args:
        plans: the runs, the first to run first.
        launcher: carries them out.
        out: the folder of the runs.
        end: when to stop, by ``time.monotonic()``.
        reporter: shows the progress.

    Returns:
        How far each run is, and whether the budget ended the work.

    Raises:
        LtatError: a folder holds a run of other settings.
        Interrupted: Ctrl-C.
    """
    limited = WithinBudget(launcher, [plan.name for plan in plans], end)
    try:
        return run_sweep(plans, limited, out, reporter), False
    except Interrupted as stopped:
        if not isinstance(stopped.__context__, BudgetSpent):
            raise
    return states_of(plans, Records(out)), True
