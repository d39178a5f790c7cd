"""What carries out the runs of a sweep: a launcher starts jobs, and the jobs take one step after another."""

from collections.abc import Sequence
from typing import Protocol

from ltat.sweeps.plans import RunPlan
from ltat.sweeps.state import Records


class Jobs(Protocol):
    """The runs of a sweep that are not finished."""

    seconds: float
    """How long to wait between two steps."""

    def step(self) -> list[RunPlan]:
        """Start what can start; returns the runs that have ended since the last step, well or not."""

    def active(self) -> set[str]:
        """The names of the runs under way."""

    def left(self) -> bool:
        """Whether a run is under way or waits."""

    def places(self) -> int:
        """How many runs are under way at a time, at most."""

    def interrupt(self) -> str:
        """Called once when the sweep is interrupted; returns what became of the runs, as a sentence."""


class Launcher(Protocol):
    """A place where runs are carried out."""

    here: bool
    """Whether it is this machine, so that every part of a run can be tried here first."""

    def begin(self, plans: Sequence[RunPlan], records: Records) -> Jobs:
        """The jobs of runs that are not finished; a run whose teacher is among them comes after it.

        Raises:
            LtatError: the launcher cannot be used here, or does not suit a run.
        """


def failed_teacher(plan: RunPlan) -> str:
    """Why a run was not started whose teacher failed."""
    assert plan.teacher is not None
    return f"its teacher {plan.teacher.name} failed, so the run was not started; correct that and repeat the sweep"
