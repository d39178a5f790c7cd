"""Teachers that several runs of a sweep share: each is a run of its own, trained once and first."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ltat.sweeps.plans import RunPlan
from ltat.training.teacher_run import teacher_key

FOLDER = "teachers"


def share_teachers(plans: Sequence[RunPlan], out: Path) -> list[RunPlan]:
    """The same runs; those with the same teacher stage name one plan for it, in ``out/teachers``.

    A run that alone has its teacher trains it itself. The bits of a run are the same either way.
    """
    students = defaultdict(list)
    for plan in plans:
        key = teacher_key(plan.asked())
        if key is not None:
            students[key].append(plan)
    teachers = {plan.name: _teacher(key, own[0], out) for key, own in students.items() if len(own) > 1 for plan in own}
    return [replace(plan, teacher=teachers.get(plan.name)) for plan in plans]


def _teacher(key: str, student: RunPlan, out: Path) -> RunPlan:
    name = f"teacher-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return RunPlan(name, (out / FOLDER / name).absolute(), student.settings, row=name, only_teacher=True)
