"""Building and checking every part of a run before anything is written."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from ltat.attacks import ThreatModel
from ltat.config import Asked, RunConfig
from ltat.config.resolving import for_dataset, resolve
from ltat.engine.global_norm import with_global_norms
from ltat.errors import LtatError
from ltat.evaluation import adjusted
from ltat.evaluation.attacks import parse_attack
from ltat.methods import find_method
from ltat.methods.teachers import teacher_settings
from ltat.ranks import ALONE, Ranks
from ltat.training.averaging import check_average, class_rows
from ltat.training.environment import pick_device
from ltat.training.error_context import located
from ltat.training.rehearsal import rehearse
from ltat.training.run_data import RunData, load_data
from ltat.training.schedule import learning_rate
from ltat.training.stage import Stage, build_stage
from ltat.training.teacher import handed_teacher, load_teacher
from ltat.training.validation import adjustment
from ltat.units import check_length


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """A run whose parts are built and checked.

    ``teacher`` is the stage that trains the teacher, or ``None`` if the run trains no teacher.
    """

    config: RunConfig
    data: RunData
    student: Stage
    teacher: Stage | None


def prepare(
    settings: Asked[RunConfig] | RunConfig,
    on_progress: Callable[[str, int, int], None] | None = None,
    teacher: nn.Module | None = None,
    ranks: Ranks = ALONE,
) -> PreparedRun:
    """Load the data, build every part of the run, and rehearse a step of each stage.

    ``on_progress`` is called as (task, images done, all images) while images are read from files; ``teacher`` is a
    module passed from Python, see :func:`ltat.training.train`; ``ranks`` share each batch.

    Raises:
        LtatError: the first error that would stop the run later.
    """
    reading = partial(on_progress, "reading the images") if on_progress else None
    asked = settings if isinstance(settings, Asked) else Asked(settings)
    known = for_dataset(asked).config
    device = pick_device(known.train.device, ranks)
    check_graph(known, device)
    check_ranks(known, ranks)
    data = load_together(known, ranks)
    method = find_method(known.method)
    config = resolve(asked, data.train.num_classes)
    check_evaluation(config, data)
    given = load_teacher(config, data, device) if teacher is None else handed_teacher(teacher, config, data, device)
    teacher_config = None if given is not None else method.teacher_config(config)
    teacher_stage = None
    if teacher_config is not None:
        with located("in the teacher stage (settings teacher.*)"):
            teacher_stage = checked_stage("teacher", teacher_config, data, device, ranks=ranks, on_progress=reading)
        given = teacher_stage.model
    elif given is not None and known.train.sync_bn and getattr(teacher_settings(config), "mode", "") == "train":
        with_global_norms(given, ranks)
    student = checked_stage("student", config, data, device, given, ranks, reading)
    return PreparedRun(config, data, student, teacher_stage)


def load_together(config: RunConfig, ranks: Ranks) -> RunData:
    """The data on every rank; what is to be fetched first, one rank of each machine fetches."""
    if config.data.download and ranks.local:
        ranks.meet()
    data = load_data(config)
    if config.data.download and not ranks.local:
        ranks.meet()
    return data


def check_graph(config: RunConfig, device: torch.device) -> None:
    """Check that CUDA graphs can be captured, where ``train.graph=true`` insists on them.

    Raises:
        LtatError: the device is not a GPU, or ``train.compile`` is set too.
    """
    if config.train.graph is True and device.type != "cuda":
        raise LtatError(f"train.graph=true captures CUDA graphs and the run is on {device}; use train.graph=false")
    if config.train.graph is True and config.train.compile:
        raise LtatError("train.graph=true and train.compile=true cannot be combined yet; choose one of them")


def check_ranks(config: RunConfig, ranks: Ranks) -> None:
    """Check the settings that do not yet suit several ranks.

    Raises:
        LtatError: ``train.compile``.
    """
    if ranks.size > 1 and config.train.compile:
        raise LtatError(f"train.compile=true runs on one rank and there are {ranks.size}; leave it out")


def check_evaluation(config: RunConfig, data: RunData) -> None:
    """Check the settings of the evaluation at the end of the run.

    Raises:
        LtatError: no attack, an unknown one, a radius or step wider than the box, or more examples than test images.
    """
    if not config.eval.attacks:
        raise LtatError("eval.attacks is empty; name at least clean")
    threat, values = ThreatModel(config.attack.norm, config.attack.eps), math.prod(data.dataset.image_shape)
    for name, length in (("attack.eps", config.attack.eps), ("attack.step_size", config.attack.step_size)):
        check_length(name, length, config.attack.norm, values=values)
    for name in (*config.eval.attacks, config.select.metric):
        parse_attack(name, threat, values)
    wanted, there = config.eval.n_examples, len(data.dataset.test)
    if wanted != "all" and wanted > there:
        raise LtatError(f"eval.n_examples={wanted} is more than the {there} test images; lower it or leave it out")


def checked_stage(
    name: str,
    config: RunConfig,
    data: RunData,
    device: torch.device,
    teacher: nn.Module | None = None,
    ranks: Ranks = ALONE,
    on_progress: Callable[[int, int], None] | None = None,
) -> Stage:
    """Build a stage, check its settings and rehearse a step.

    Raises:
        LtatError: settings that do not fit together, or a step that fails.
    """
    check_selection(config)
    check_average(config)
    learning_rate(config.schedule, config.optim.lr, 1, config.train.epochs)
    stage = build_stage(name, config, data, device, teacher, ranks, on_progress)
    adjust = adjustment(stage, data)
    if adjust is not None:
        adjusted(stage.model, adjust)  # refuses a network that adjusts its logits itself
    class_rows(stage.model, stage)  # refuses a last layer without them
    stage.unsaved = rehearse(stage, data)
    return stage


def check_selection(config: RunConfig) -> None:
    """Check how the best checkpoint is chosen.

    Raises:
        LtatError: no epoch is a candidate.
    """
    select, epochs = config.select, config.train.epochs
    if select.set != "none" and select.from_epoch > epochs:
        raise LtatError(f"select.from={select.from_epoch} is beyond the {epochs} epochs; lower it")
