"""Runs that are not trained: a launcher writes their folders with figures that a test names."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import tomli_w

from ltat.sweeps import RunPlan
from ltat.sweeps.state import Records

Accuracies = Callable[[RunPlan], tuple[float, float]]
IMAGES = {"overall": 400, "tail": 40}


def write_run(plan: RunPlan, clean: float, tail: float) -> None:
    """The folder of a finished run: accuracies in percent of all images, and of the tail under attack."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder / "config.toml").write_text(tomli_w.dumps(plan.settings))
    environment = {"ltat": "0", "commit": "abc", "machine": "stub", "device": "cpu", "threads": 1}
    (plan.folder / "env.json").write_text(json.dumps(environment))
    figures = {"clean": {"overall": clean, "tail": clean}, "pgd2": {"overall": tail, "tail": tail}}
    report = {attack: {**own, "n": IMAGES} for attack, own in figures.items()}
    (plan.folder / "report.json").write_text(json.dumps({"last": report}))


@dataclass
class Stub:
    """Carries out a run in each step; ``failing`` ones fail, and what was done is in ``ran``."""

    accuracies: Accuracies = lambda plan: (60.0, 30.0)
    failing: Sequence[str] = ()
    on_run: Callable[[RunPlan], None] = lambda plan: None
    ran: list[str] = field(default_factory=list)
    interrupted: int = 0
    here = True

    def begin(self, plans: Sequence[RunPlan], records: Records) -> "StubJobs":
        return StubJobs(self, list(plans), records)


class StubJobs:
    seconds = 0.0

    def __init__(self, stub: Stub, plans: list[RunPlan], records: Records) -> None:
        self.stub, self.waiting, self.records = stub, plans, records

    def step(self) -> list[RunPlan]:
        plan = self.waiting.pop(0)
        self.stub.ran.append(plan.name)
        self.stub.on_run(plan)
        if plan.name in self.stub.failing:
            self.records.fail(plan, "planted failure")
        elif not plan.only_teacher:
            write_run(plan, *self.stub.accuracies(plan))
        return [plan]

    def active(self) -> set[str]:
        return set()

    def left(self) -> bool:
        return bool(self.waiting)

    def places(self) -> int:
        return 1

    def interrupt(self) -> str:
        self.stub.interrupted += 1
        return "interrupted; the run under way was stopped"
