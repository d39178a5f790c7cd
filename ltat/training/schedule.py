"""The learning rate of an epoch."""

import math
from collections.abc import Callable

from ltat.config import ScheduleSection, named_epoch
from ltat.errors import LtatError


def _multistep(schedule: ScheduleSection, epoch: int, epochs: int) -> float:
    passed = sum(epoch >= first for first in drop_epochs(schedule, epochs))
    return schedule.factor**passed


def _compounding(schedule: ScheduleSection, epoch: int, epochs: int) -> float:
    # RoBal's code multiplies the current rate, not the initial one, by the decay of the epoch.
    drops = drop_epochs(schedule, epochs)
    return schedule.factor ** sum(max(0, epoch - first + 1) for first in drops)


def _cosine(schedule: ScheduleSection, epoch: int, epochs: int) -> float:
    del schedule
    return 0.5 * (1 + math.cos(math.pi * (epoch - 1) / epochs))


def _onecycle(schedule: ScheduleSection, epoch: int, epochs: int) -> float:
    # The form of torch.optim.lr_scheduler.OneCycleLR of so many steps, with one step an epoch and a fixed momentum.
    if epochs == 1:
        return 1.0
    lowest = 1 / (schedule.div * schedule.final_div)
    passed, peak = epoch - 1, schedule.rise * epochs - 1
    if passed <= peak:
        return _annealed(1 / schedule.div, 1.0, passed / peak if peak else 1.0)
    return _annealed(1.0, lowest, (passed - peak) / (epochs - 1 - peak))


def _annealed(start: float, end: float, share: float) -> float:
    """From ``start`` to ``end`` along half a cosine, of which ``share`` is done."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def _constant(schedule: ScheduleSection, epoch: int, epochs: int) -> float:
    del schedule, epoch, epochs
    return 1.0


SCHEDULES: dict[str, Callable[[ScheduleSection, int, int], float]] = {
    "multistep": _multistep,
    "compounding": _compounding,
    "cosine": _cosine,
    "onecycle": _onecycle,
    "constant": _constant,
}


def drop_epochs(schedule: ScheduleSection, epochs: int) -> list[int]:
    """The epochs, counted from 1, from which the multistep schedule uses each smaller rate.

    A share never means the first epoch, so that a run of one epoch keeps the base rate.
    """
    earliest = 1 + schedule.milestone_base
    absolute = [max(earliest, named_epoch(m, epochs)) if m <= 1 else int(m) for m in schedule.milestones]
    return [m + 1 - schedule.milestone_base for m in absolute]


def learning_rate(schedule: ScheduleSection, base: float, epoch: int, epochs: int) -> float:
    """The learning rate in ``epoch`` (from 1 to ``epochs``), with a linear warm-up over the first ``warmup``.

    Raises:
        LtatError: an unknown kind of schedule.
    """
    if schedule.kind not in SCHEDULES:
        raise LtatError(f"schedule.kind={schedule.kind} is unknown; choose one of {', '.join(SCHEDULES)}")
    warm = min(1.0, epoch / schedule.warmup) if schedule.warmup else 1.0
    return base * warm * SCHEDULES[schedule.kind](schedule, epoch, epochs)
