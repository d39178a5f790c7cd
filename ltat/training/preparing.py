"""Everything that can fail in a run, built and tried once before anything is written."""

import copy
import io
import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from ltat.attacks import ThreatModel
from ltat.attacks.checks import trial_logits
from ltat.config import RunConfig
from ltat.data import Batch
from ltat.errors import LtatError
from ltat.evaluation import LogitAdjusted
from ltat.evaluation.attacks import parse_attack
from ltat.methods import LossTerms, Method, Step, find_method
from ltat.methods.awp import perturbed_weights
from ltat.models import Classifier, build_model, load_model
from ltat.models.classes import match_classes
from ltat.seeding import torch_generator
from ltat.training.averaging import check_average
from ltat.training.environment import pick_device
from ltat.training.fitting import adjustment
from ltat.training.optimizer import build_optimizer
from ltat.training.schedule import learning_rate
from ltat.training.task import TaskData, build_loader, load_data, resolve
from ltat.training.trainer import Stage, in_precision
from ltat.training.warm_start import normalization, start_from
from ltat.units import check_length


@dataclass(frozen=True, eq=False)
class Plan:
    """A run whose every part is built and checked.

    ``teacher`` is the stage that trains the teacher, or ``None`` where there is nothing to train.
    """

    config: RunConfig
    data: TaskData
    student: Stage
    teacher: Stage | None


def prepare(
    config: RunConfig,
    on_progress: Callable[[str, int, int], None] | None = None,
    teacher: nn.Module | None = None,
) -> Plan:
    """Load the data, build every part of the run, and rehearse a step of each stage.

    ``on_progress`` is called with what is done, images done and images in all, where images are read from files;
    ``teacher`` is one handed in, see :func:`ltat.training.train`.

    Raises:
        LtatError: the first thing that would stop the run later.
    """
    reading = partial(on_progress, "reading the images") if on_progress else None
    config = resolve(config)
    device = pick_device(config.train.device)
    check_graph(config, device)
    data = load_data(config)
    method = find_method(config.method)
    config = method.resolve(config, data.train.num_classes)
    check_evaluation(config, data)
    given = load_teacher(config, data, device) if teacher is None else handed_teacher(teacher, config, data, device)
    teacher_config = None if given is not None else method.teacher_config(config)
    teacher_stage = None
    if teacher_config is not None:
        with saying("in the teacher stage (settings teacher.*)"):
            teacher_stage = checked_stage("teacher", teacher_config, data, device, on_progress=reading)
        given = teacher_stage.model
    student = checked_stage("student", config, data, device, given, on_progress=reading)
    return Plan(config, data, student, teacher_stage)


def check_graph(config: RunConfig, device: torch.device) -> None:
    """Look at whether the attack can be captured as a CUDA graph, where that is asked for.

    Raises:
        LtatError: not on this device, or not together with ``torch.compile``.
    """
    if config.train.graph and device.type != "cuda":
        raise LtatError(f"train.graph=true captures CUDA graphs and the run is on {device}; use train.graph=false")
    if config.train.graph and config.train.compile:
        raise LtatError("train.graph=true and train.compile=true do not go together yet; choose one of them")


def check_evaluation(config: RunConfig, data: TaskData) -> None:
    """Look at the settings of the evaluation that ends the run.

    Raises:
        LtatError: no attack, an unknown one, a radius or step wider than the box, or more examples than test images.
    """
    if not config.eval.attacks:
        raise LtatError("eval.attacks is empty; name at least clean")
    threat, values = ThreatModel(config.attack.norm, config.attack.eps), math.prod(data.dataset.image_shape)
    for name, length in (("attack.eps", config.attack.eps), ("attack.step_size", config.attack.step_size)):
        check_length(name, length, config.attack.norm, values=values)
    for name in (*config.eval.attacks, config.select.metric or "clean"):
        parse_attack(name, threat, values)
    asked, there = config.eval.n_examples or 0, len(data.dataset.test)
    if asked > there:
        raise LtatError(f"eval.n_examples={asked} is more than the {there} test images; lower it or leave it out")


def teacher_path(config: RunConfig) -> str | None:
    """The checkpoint that is named as the teacher, if the method has one and one is named."""
    return getattr(getattr(config, "teacher", None), "path", None)


def handed_teacher(teacher: nn.Module, config: RunConfig, data: TaskData, device: torch.device) -> nn.Module:
    """A copy of a module handed in as the teacher, on ``device`` and tried on two images.

    Raises:
        LtatError: the method has no teacher, another one is named, or this one does not fit the images and classes.
    """
    if not hasattr(config, "teacher"):
        raise LtatError(f"method {config.method!r} has no teacher and one was handed in; leave it out")
    if teacher_path(config):
        raise LtatError(f"teacher.path={teacher_path(config)} names a teacher and another was handed in; give one")
    teacher = copy.deepcopy(teacher).to(device).to(memory_format=torch.channels_last).eval()
    match_teacher(teacher, config, data)
    images = first_images(data, 2, device)
    found, wanted = tuple(trial_logits(teacher, images, "the teacher").shape), (len(images), data.train.num_classes)
    if found != wanted:
        raise LtatError(f"the teacher answers {found} and not logits {wanted}; hand in one of the data's classes")
    return teacher


def first_images(data: TaskData, n: int, device: torch.device) -> torch.Tensor:
    """The first ``n`` training images as [n, C, H, W] in [0, 1]."""
    return torch.from_numpy(data.train.images[:n]).permute(0, 3, 1, 2).float().div(255).to(device)


def load_teacher(config: RunConfig, data: TaskData, device: torch.device) -> Classifier | None:
    """The teacher of a checkpoint, where one is named, in the memory layout of training.

    Raises:
        LtatError: it cannot be read, takes images of another number of channels, or knows other classes.
    """
    path = teacher_path(config)
    if path is None:
        return None
    teacher = load_model(path, device=device).to(memory_format=torch.channels_last)
    channels = data.train.images.shape[-1]
    if teacher.in_channels != channels:
        raise LtatError(
            f"the teacher {path} takes images of {teacher.in_channels} channels and the data have {channels}; "
            "name another teacher"
        )
    match_teacher(teacher, config, data)
    return teacher


def match_teacher(teacher: nn.Module, config: RunConfig, data: TaskData) -> None:
    """See that the teacher's classes are the data's, as far as names are known; ``teacher.classes_by_name`` maps them.

    Raises:
        LtatError: they are other ones, or cannot be mapped.
    """
    if isinstance(teacher, Classifier):
        by_name = getattr(config, "teacher").classes_by_name  # noqa: B009  (only methods with a teacher have one)
        match_classes(teacher, data.dataset.class_names, "teacher.classes_by_name", by_name, "the teacher")


def checked_stage(
    name: str,
    config: RunConfig,
    data: TaskData,
    device: torch.device,
    teacher: nn.Module | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Stage:
    """Build a stage, and try what it will do.

    Raises:
        LtatError: settings that do not fit together, or a step that fails.
    """
    check_selection(config)
    check_average(config)
    learning_rate(config.schedule, config.optim.lr, 1, config.train.epochs)
    stage = build_stage(name, config, data, device, teacher, on_progress)
    adjust = adjustment(stage, data)
    if adjust is not None:
        LogitAdjusted(stage.model, adjust)  # refuses a network that adjusts its logits itself
    rehearse(stage, data)
    return stage


def check_selection(config: RunConfig) -> None:
    """Look at how the best checkpoint is to be chosen.

    Raises:
        LtatError: no epoch in which a checkpoint competes.
    """
    select, epochs = config.select, config.train.epochs
    if select.set != "none" and select.from_epoch > epochs:
        raise LtatError(f"select.from={select.from_epoch} is beyond the {epochs} epochs; lower it")


def build_stage(
    name: str,
    config: RunConfig,
    data: TaskData,
    device: torch.device,
    teacher: nn.Module | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Stage:
    """Loader, method and model of one stage; new weights depend on the training seed and the stage only."""
    loader = build_loader(data.train, config, device, on_progress)
    counts = torch.as_tensor(loader.class_counts(1), device=device)
    building = told(f"method {config.method} cannot be built", "correct it, or its settings")
    with building, initial_weights(config.seed.train, name):
        method = find_method(config.method)(config, counts, teacher)
        model = build_model(
            config.model.name,
            num_classes=data.train.num_classes,
            in_channels=data.train.images.shape[-1],
            normalize=normalization(config, data.train),
        )
        model = method.prepare_model(model)
        if not isinstance(model, Classifier):
            raise LtatError(f"prepare_model() of {config.method} returns a {type(model).__name__}; return the network")
    start_from(model, config, data.dataset.class_names)
    return Stage(name, config, model.to(device).to(memory_format=torch.channels_last), method, loader, device)


@contextmanager
def initial_weights(seed: int, stage: str) -> Iterator[None]:
    """Inside, torch's CPU generator is the stage's own; outside it is as before, on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_generator(seed, f"{stage}/init").initial_seed())
        yield


def rehearse(stage: Stage, data: TaskData) -> None:
    """One step of the first and of the last epoch on a copy, attack and update.

    The batch has as many images as the smallest of an epoch will have, at most two.

    Raises:
        LtatError: the step fails.
    """
    trial = copy.deepcopy((stage.model, stage.method))
    settings, method = stage.config.train, trial[1]
    network = in_precision(trial[0], settings).train()
    last = stage.loader.plan.size(1) % stage.loader.batch_size
    n = 1 if stage.loader.batch_size == 1 or (last == 1 and not settings.drop_last) else 2
    pixels = first_images(data, n, stage.device)
    labels = torch.from_numpy(data.train.labels[:n]).to(stage.device)
    batch = Batch(pixels, labels, torch.arange(n, device=stage.device))
    with told(f"a training step on images {tuple(pixels.shape)} fails", "change the model, the method or the batches"):
        method.initialise(trial[0])
        for epoch in dict.fromkeys((1, settings.epochs)):
            counts = torch.as_tensor(stage.loader.class_counts(epoch), device=stage.device)
            noise = torch_generator(0, "rehearsal", device=stage.device)
            rehearse_step(method, Step(network, batch, epoch, settings.epochs, counts, batch.images, noise))
        build_optimizer(trial[0], stage.config.optim).step()
        check_state(method)


def rehearse_step(method: Method, step: Step) -> None:
    """All that a method does in an epoch of one batch, up to the gradients."""
    method.begin_epoch(step.epoch)
    step = replace(step, x_adv=method.attack(step))
    with perturbed_weights(step, method.config, method.loss):
        terms = method.loss(step)
        check_terms(terms, step, method)
        terms.loss.backward()
    method.end_step(step, terms.detached())
    method.end_epoch(step.epoch)


def check_terms(terms: object, step: Step, method: Method) -> None:
    """Look at what a method's loss returned.

    Raises:
        LtatError: not what :class:`ltat.methods.LossTerms` describes, or no finite loss.
    """
    if not isinstance(terms, LossTerms):
        raise LtatError(f"loss() of {type(method).__name__} returns a {type(terms).__name__}; return LossTerms")
    wanted = (len(step.batch.labels), len(step.class_counts))
    for name, value, shape in (("loss", terms.loss, ()), ("logits", terms.logits, wanted)):
        _require_shape(name, value, shape)
    for name, value in dict(terms.logs).items():
        _require_shape(f"logs[{name!r}]", value, ())
    served = bool(step.class_counts[step.batch.labels].all())  # the prior of a class that is never drawn is 0
    if served and not terms.loss.isfinite():
        raise LtatError(f"the loss of the first step is {terms.loss.item()}; lower the constants of the loss")


def _require_shape(name: str, value: object, shape: tuple[int, ...]) -> None:
    found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    if found != shape:
        raise LtatError(f"{name} of the method's LossTerms is {found}; return a tensor of shape {shape}")


def check_state(method: Method) -> None:
    """Write and read the method's state as the file to resume from does.

    Raises:
        LtatError: it holds more than tensors, numbers, strings and containers of them.
    """
    file = io.BytesIO()
    try:
        torch.save(method.state_dict(), file)
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    except Exception:  # torch raises many types for what it cannot write or will not read
        name = type(method).__name__
        raise LtatError(f"state_dict() of {name} cannot be kept; return tensors, numbers and strings only") from None


@contextmanager
def told(what: str, remedy: str) -> Iterator[None]:
    """Turn an error inside into one sentence; one of programming also says where it arose."""
    try:
        yield
    except (LtatError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, RuntimeError | ValueError):
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {reason}, in {place.filename}:{place.lineno}"
        raise LtatError(f"{what} ({reason}); {remedy}") from error


@contextmanager
def saying(where: str) -> Iterator[None]:
    """Add to an error where it arose."""
    try:
        yield
    except LtatError as error:
        raise LtatError(f"{where}: {error}") from None
