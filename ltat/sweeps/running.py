"""Carrying out a sweep: what is finished is skipped, what was begun goes on, and a failed run stops no other."""

import time
from collections.abc import Sequence
from pathlib import Path

from ltat.interrupts import termination_interrupts
from ltat.sweeps.checking import check_plans
from ltat.sweeps.jobs import Jobs, Launcher
from ltat.sweeps.plans import RunPlan, require_distinct
from ltat.sweeps.state import Phase, Records, RunState, progress_of, state_of
from ltat.sweeps.table import SweepReporter
from ltat.training.run_folder import TEACHER_FILES
from ltat.training.run_lock import locked, require_unlocked

States = dict[str, RunState]


class Interrupted(KeyboardInterrupt):
    """A sweep that was stopped; the message says what became of its runs."""


def run_sweep(
    plans: Sequence[RunPlan],
    launcher: Launcher,
    out: Path,
    reporter: SweepReporter | None = None,
) -> States:
    """Carry out the runs that are not finished, and the teachers that they share.

    Args:
        plans: the runs; :func:`ltat.sweeps.share_teachers` makes them share teachers.
        launcher: where they are carried out.
        out: the folder of the sweep, which gets the logs; it is locked until the sweep ends.
        reporter: shows the progress; by default a new one on standard error.

    Returns:
        How far each run and each teacher is at the end, by name.

    Raises:
        LtatError: a folder holds a run of other settings, or a run cannot start with its settings.
        Interrupted: Ctrl-C; the runs have been stopped, and the same call continues them.
    """
    records = Records(out)
    states = states_of(plans, records)
    todo = unfinished(plans, states)
    if not todo:
        return states
    require_unlocked(out)
    if launcher.here:
        check_plans(plan for plan in todo if not plan.only_teacher)
    jobs = launcher.begin(todo, records)
    with reporter or SweepReporter() as shown, locked(out, shown.say), termination_interrupts():
        for plan in todo:  # an earlier failure is no state of this sweep
            records.clear(plan)
            states[plan.name] = state_of(plan, records)
        try:
            watch(jobs, {plan.name: plan for plan in [*teachers_of(plans), *plans]}, states, records, shown)
        except KeyboardInterrupt:
            raise Interrupted(jobs.interrupt()) from None
        except BaseException:
            jobs.interrupt()
            raise
    return states


def watch(jobs: Jobs, plans: dict[str, RunPlan], states: States, records: Records, shown: SweepReporter) -> None:
    """Let the jobs take steps until none is left; ``states`` is kept up to date."""
    while True:
        for plan in jobs.step():
            states[plan.name] = state_of(plan, records)
        for name in jobs.active():
            states[name] = progress_of(plans[name], Phase.RUNNING)
        shown.update(states, jobs.places())
        if not jobs.left():
            return
        time.sleep(jobs.seconds)


def states_of(plans: Sequence[RunPlan], records: Records) -> States:
    """How far each run is, and each teacher that a run still needs.

    Raises:
        LtatError: two runs share a name or a folder, or a folder holds a run of other settings.
    """
    require_distinct(plans)
    own = {plan.name: state_of(plan, records) for plan in plans}
    needed = {plan.teacher.name: plan.teacher for plan in plans if plan.teacher and needs_teacher(plan, own)}
    return {name: state_of(teacher, records) for name, teacher in needed.items()} | own


def needs_teacher(plan: RunPlan, states: States) -> bool:
    """Whether the run has to be given its teacher before it can go on."""
    begun = (plan.folder / TEACHER_FILES.state).exists()
    return states[plan.name].phase is not Phase.FINISHED and not begun


def teachers_of(plans: Sequence[RunPlan]) -> list[RunPlan]:
    """The teachers that runs share, each once."""
    return list({plan.teacher.name: plan.teacher for plan in plans if plan.teacher}.values())


def unfinished(plans: Sequence[RunPlan], states: States) -> list[RunPlan]:
    """The runs to carry out, teachers first."""
    known = [plan for plan in [*teachers_of(plans), *plans] if plan.name in states]
    return [plan for plan in known if states[plan.name].phase is not Phase.FINISHED]
