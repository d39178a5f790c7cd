"""The batches of a stage: the images of an epoch, their order and their augmentation."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ltat.config import RunConfig
from ltat.data import (
    Augment,
    BalancedPlan,
    ClassSamplingPlan,
    IndexPlan,
    Loader,
    ProgressivePlan,
    ShufflePlan,
    Split,
    make_loader,
    plan_from_file,
)
from ltat.data.policies import find_policy
from ltat.errors import LtatError
from ltat.ranks import ALONE, Ranks


def _natural(split: Split, config: RunConfig) -> ShufflePlan:
    return ShufflePlan(len(split), config.seed.train)


def _by_power(power: float) -> Callable[[Split, RunConfig], IndexPlan]:
    return lambda split, config: ClassSamplingPlan(split.labels, split.num_classes, power, config.seed.train)


def _progressive(split: Split, config: RunConfig) -> ProgressivePlan:
    return ProgressivePlan(split.labels, split.num_classes, config.train.epochs, config.seed.train)


def _from_file(split: Split, config: RunConfig) -> IndexPlan:
    if config.data.plan_file is None:
        raise LtatError("data.sampling=file needs a plan; name it with data.plan_file")
    plan = plan_from_file(Path(config.data.plan_file), len(split))
    counts = np.bincount(split.labels[plan.positions], minlength=split.num_classes)
    if not counts.all():
        raise LtatError(f"{config.data.plan_file} names no image of class {np.argmin(counts)}; add one of each class")
    return plan


def balanced_plan(split: Split, config: RunConfig) -> BalancedPlan:
    """The index plan of D_B, the balanced subset, by the ``db`` settings."""
    db = config.db
    return BalancedPlan(
        split.labels,
        split.num_classes,
        db.gamma,
        db_seed=config.seed.db,
        seed=config.seed.train,
        resample=db.resample,
        remainder=db.remainder,
        partial=db.partial,
    )


SAMPLING: dict[str, Callable[[Split, RunConfig], IndexPlan]] = {
    "natural": _natural,
    "balanced": balanced_plan,
    "class_balanced": _by_power(0.0),
    "square_root": _by_power(0.5),
    "progressive": _progressive,
    "file": _from_file,
}


def build_plan(split: Split, config: RunConfig) -> IndexPlan:
    """The index plan of a stage, by its ``data.sampling``.

    Raises:
        LtatError: an unknown sampling, or a plan file that cannot be used.
    """
    if config.data.sampling not in SAMPLING:
        raise LtatError(f"unknown sampling {config.data.sampling!r}; choose one of {', '.join(SAMPLING)}")
    return SAMPLING[config.data.sampling](split, config)


def build_augment(config: RunConfig) -> Augment:
    """The augmentation of a stage, by its ``aug`` settings.

    Raises:
        LtatError: an unknown policy.
    """
    aug = config.aug
    policy = find_policy(aug.policy, aug.ra_ops, aug.ra_magnitude)
    return Augment(aug.pad, aug.flip, aug.pad_mode, policy, aug.cutout)


def build_loader(
    split: Split,
    config: RunConfig,
    device: torch.device,
    ranks: Ranks = ALONE,
    on_progress: Callable[[int, int], None] | None = None,
) -> Loader:
    """The batches of a stage, by its ``data.sampling``, ``aug`` and ``loader`` settings.

    Where ``ranks`` share the batches, the loader serves the images of one of them. ``on_progress`` is called with
    (images read, all images) while the loader reads the data set into memory.

    Raises:
        LtatError: batches larger than the data, or settings that do not fit it.
    """
    return make_loader(
        split,
        build_plan(split, config),
        kind=config.loader.kind,
        share=config.loader.share,
        workers=None if config.loader.workers == "auto" else config.loader.workers,
        batch_size=config.train.batch_size,
        augment=build_augment(config),
        seed=config.seed.train,
        device=device,
        drop_last=config.train.drop_last,
        ranks=ranks,
        on_progress=on_progress,
    )
