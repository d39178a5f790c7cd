"""Every target with its runs, their cost, and how many are done."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ltat.errors import LtatError
from ltat.reproduce.cost import RunCost, run_cost
from ltat.reproduce.planning import Place, Planned, plan_cell, row_images
from ltat.reproduce.targets import Target
from ltat.reproduce.throughput import Throughput, Workload, workload_of
from ltat.sweeps import Phase, RunPlan
from ltat.sweeps.state import Records, state_of


@dataclass(frozen=True)
class Work:
    """What a target takes.

    Attributes:
        target: the target.
        runs: how many it has.
        done: how many of them are finished.
        training: image passes of the training of all runs.
        testing: those of the selection of checkpoints and of the evaluation.
        hours: of what is not finished, on this machine.

    The last three are ``None`` where they depend on images that are not there.
    """

    target: Target
    runs: int
    done: int
    training: float | None = None
    testing: float | None = None
    hours: float | None = None


def list_work(targets: Sequence[Target], place: Place, seeds: int | None) -> Iterator[Work]:
    """What each target takes. A run that several targets share counts in each of them."""
    planned = {
        target.name: [plan_cell(cell, place, seeds or target.seeds) for cell in target.cells] for target in targets
    }
    known: dict[str, RunCost] = {}
    speed = learned(place, [each for own in planned.values() for each in own])
    for target in targets:
        yield work_of(target, planned[target.name], place, known, speed)


def learned(place: Place, planned: Sequence[Planned]) -> Throughput:
    """The speeds of this machine, with those of finished epochs."""
    speed, plans = Throughput(place.out), defaultdict[Workload, list[RunPlan]](list)
    for plan in {plan.name: plan for own in planned for plan in own.runs}.values():
        if (plan.folder / "metrics.jsonl").exists():
            plans[workload(plan, place)].append(plan)
    for each, own in plans.items():
        speed.learn(each, own)
    return speed


def workload(plan: RunPlan, place: Place) -> Workload:
    """What decides how fast a pass of the run is."""
    return workload_of(plan.asked(), None if place.stand_in is None else place.stand_in.shape)


def work_of(
    target: Target, planned: Sequence[Planned], place: Place, known: dict[str, RunCost], speed: Throughput
) -> Work:
    """What one target takes; ``known`` keeps the costs of runs by name."""
    plans = {plan.name: (own, plan) for own in planned for plan in own.runs}
    done = {name for name, (_, plan) in plans.items() if is_done(plan, place)}
    work = Work(target, len(plans), len(done))
    try:
        for name, (own, plan) in plans.items():
            if name not in known:
                known[name] = run_cost(plan.asked(), row_images(own))
    except LtatError:
        return work
    left = [(known[name].total, workload(plan, place)) for name, (_, plan) in plans.items() if name not in done]
    return replace(
        work,
        training=sum(known[name].training for name in plans),
        testing=sum(known[name].selection + known[name].evaluation for name in plans),
        hours=sum(passes / speed.of(kind) for passes, kind in left) / 3600,
    )


def is_done(plan: RunPlan, place: Place) -> bool:
    """Whether the run is finished; a folder with a run of other settings does not count."""
    try:
        return state_of(plan, Records(place.runs)).phase is Phase.FINISHED
    except LtatError:
        return False
