"""The settings that count epochs, of a run that is shorter or longer than its recipe."""

from typing import Any

from ltat.config import AverageSection, AwpSection, RunConfig, ScheduleSection
from ltat.methods.teachers import teacher_settings


def scaled(config: RunConfig, epochs: int) -> dict[str, Any]:
    """The settings that count epochs, in the proportion of ``epochs`` to the epochs of ``config``, by dotted name.

    These are the teacher's epochs, at least 1, and in both stages milestones, warm-ups, and an average's decay.
    """
    share, teacher = epochs / config.train.epochs, teacher_settings(config)
    values = scaled_schedule("schedule", config.schedule, share)
    values |= scaled_options("", config.awp, config.average, share)
    if teacher is not None:
        values |= scaled_schedule("teacher.schedule", teacher.schedule, share)
        values |= scaled_options("teacher.", teacher.awp, teacher.average, share)
        values["teacher.epochs"] = max(1, round(share * teacher.epochs))
    return values


def scaled_schedule(name: str, schedule: ScheduleSection, share: float) -> dict[str, Any]:
    """Milestones and warm-up of a run that is ``share`` as long; a milestone above 1 stays an epoch, of at least 2."""
    milestones = [when if when <= 1 else max(2, round(share * when)) for when in schedule.milestones]
    return {f"{name}.milestones": milestones, f"{name}.warmup": round(share * schedule.warmup)}


def scaled_options(stage: str, awp: AwpSection, average: AverageSection, share: float) -> dict[str, Any]:
    """The warm-up of AWP and the decay of an average, where it is in epochs, of a run that is ``share`` as long."""
    values: dict[str, Any] = {f"{stage}awp.warmup": int(share * awp.warmup)}
    if average.decay_epochs:
        values[f"{stage}average.decay_epochs"] = share * average.decay_epochs
    return values
