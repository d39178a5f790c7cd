"""A teacher that the run does not train: a checkpoint, or a module from Python."""

import copy
from pathlib import Path

import torch
from torch import nn

from ltat.attacks.checks import trial_logits
from ltat.config import RunConfig
from ltat.errors import LtatError
from ltat.methods.teachers import TeacherSection, teacher_settings
from ltat.models import Classifier, build_model, load_model, load_published
from ltat.models.base import moved
from ltat.models.classes import match_classes
from ltat.models.silu_wideresnet import PUBLISHED_NORMALIZATIONS, SiluWideResNet
from ltat.training.run_data import RunData, first_images

PUBLISHED = (".pt", ".pth", ".pkl")
"""What the names of files end in that torch writes."""


def teacher_path(config: RunConfig) -> str | None:
    """The checkpoint of the teacher, or ``None`` for a method without a teacher or a run without a checkpoint."""
    settings = teacher_settings(config)
    return None if settings is None else settings.path


def load_teacher(config: RunConfig, data: RunData, device: torch.device) -> Classifier | None:
    """Load the teacher from its checkpoint, if one is named, in the memory layout of training.

    Raises:
        LtatError: the file cannot be read, or the teacher has another number of channels or other classes.
    """
    settings = teacher_settings(config)
    if settings is not None and settings.normalize != "file" and not is_published(settings.path or ""):
        raise LtatError(
            f"teacher.normalize={settings.normalize} is for a teacher from a .pt and this is none; leave it out"
        )
    if settings is None or settings.path is None:
        return None
    channels = data.train.images.shape[-1]
    if is_published(settings.path):
        teacher = moved(read_published(settings, data.train.num_classes, channels), device)
    else:
        teacher = load_model(settings.path, device=device)
    teacher = teacher.to(memory_format=torch.channels_last)
    if teacher.in_channels != channels:
        raise LtatError(
            f"the teacher {settings.path} takes images of {teacher.in_channels} channels and the data have {channels}; "
            "name another teacher"
        )
    match_teacher(teacher, settings, data)
    return teacher


def is_published(path: str) -> bool:
    """Whether the file is one that torch writes, without a card that describes the network."""
    return Path(path).suffix in PUBLISHED


def read_published(settings: TeacherSection, num_classes: int, channels: int) -> Classifier:
    """The network ``teacher.model`` with the weights of another project's file, in evaluation mode.

    Raises:
        LtatError: the file cannot be read, or holds weights of another network, number of classes or normalisation.
    """
    name, normalize = settings.model, PUBLISHED_NORMALIZATIONS.get(settings.normalize)
    with torch.random.fork_rng(devices=[]):  # initial weights are overwritten and must not cost the run's numbers
        network = build_model(name, num_classes=num_classes, in_channels=channels, normalize=normalize)
    try:
        load_published(network, str(settings.path)).eval()
    except LtatError as error:
        raise LtatError(f"the teacher, read as teacher.model={name}: {error}") from None
    if isinstance(network, SiluWideResNet) and network.normalization is None:
        raise LtatError(
            f"{settings.path} holds no mean and deviation, by which every published {name} normalises its images; "
            f"say whose they are: teacher.normalize={' or '.join(PUBLISHED_NORMALIZATIONS)}"
        )
    return network


def handed_teacher(teacher: nn.Module, config: RunConfig, data: RunData, device: torch.device) -> nn.Module:
    """A copy of a teacher module passed from Python, on ``device``, after a trial on two images.

    Raises:
        LtatError: the method has no teacher, ``teacher.path`` names another one, or the module does not fit the images
            and classes.
    """
    settings = teacher_settings(config)
    if settings is None:
        raise LtatError(f"method {config.method!r} has no teacher and one was passed; leave it out")
    if settings.train == "ema":
        raise LtatError("teacher.train=ema learns from the run's own average and a teacher was passed; leave one out")
    if settings.path:
        raise LtatError(f"teacher.path={settings.path} names a teacher and another was passed; leave one out")
    teacher = copy.deepcopy(teacher).to(device).to(memory_format=torch.channels_last).eval()
    match_teacher(teacher, settings, data)
    images = first_images(data, 2, device)
    found, wanted = tuple(trial_logits(teacher, images, "the teacher").shape), (len(images), data.train.num_classes)
    if found != wanted:
        raise LtatError(f"the teacher returns shape {found} instead of {wanted}; pass one with the data's classes")
    return teacher


def match_teacher(teacher: nn.Module, settings: TeacherSection, data: RunData) -> None:
    """Check the teacher's class names, if it has any, against the data's; ``teacher.classes_by_name`` maps them.

    Raises:
        LtatError: the names differ, or cannot be mapped.
    """
    if isinstance(teacher, Classifier):
        names, by_name = data.dataset.class_names, settings.classes_by_name
        match_classes(teacher, names, "teacher.classes_by_name", by_name, "the teacher")
