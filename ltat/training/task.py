"""From settings to data: the long-tailed set, its held-out part, and the loaders of the stages."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltat.config import RunConfig
from ltat.data import (
    Augment,
    BalancedPlan,
    ClassSamplingPlan,
    Dataset,
    IndexPlan,
    Loader,
    ProgressivePlan,
    ShufflePlan,
    Split,
    find_spec,
    holdout_indices,
    index_hash,
    load_dataset,
    make_loader,
    plan_from_file,
)
from ltat.data.policies import find_policy
from ltat.errors import LtatError


@dataclass(frozen=True, eq=False)
class TaskData:
    """The data of a run: ``dataset.train`` is D, of which ``train`` is trained on and ``val`` held out."""

    dataset: Dataset
    train: Split
    val: Split | None


def resolve(config: RunConfig) -> RunConfig:
    """Fill the settings left out that the data set decides: ratio, augmentation, the seed of D_B.

    Raises:
        LtatError: an unknown data set.
    """
    spec = find_spec(config.data.name)
    if config.data.plan_file is not None and config.data.sampling != "file":
        raise LtatError(f"data.plan_file is not used by data.sampling={config.data.sampling}; set it to file")
    default_ratio = "natural" if config.data.split_file else spec.default_ratio
    ratio = default_ratio if config.data.imbalance_ratio is None else config.data.imbalance_ratio
    pad = spec.pad if config.aug.pad is None else config.aug.pad
    flip = spec.flip if config.aug.flip is None else config.aug.flip
    db_seed = config.seed.subset if config.seed.db is None else config.seed.db
    metric = config.select.metric or ("pgd20" if config.select.set == "test" else "pgd10")
    files = ("dir", "split_file", "plan_file", "train_list", "test_list")
    places = {name: _absolute(getattr(config.data, name)) for name in files}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"imbalance_ratio": ratio, **places}),
            "model": config.model.model_copy(update={"weights": _absolute(config.model.weights)}),
            "aug": config.aug.model_copy(update={"pad": pad, "flip": flip}),
            "seed": config.seed.model_copy(update={"db": db_seed}),
            "select": config.select.model_copy(update={"metric": metric}),
        }
    )


def _absolute(path: str | None) -> str | None:
    # A run must find its data again when it is resumed from another folder.
    return None if path is None else str(Path(path).expanduser().absolute())


def load_data(config: RunConfig) -> TaskData:
    """Load the data set of resolved settings and hold out the validation part.

    Raises:
        LtatError: whatever :func:`ltat.data.load_dataset` finds, or a class too small to hold anything out.
    """
    data = config.data
    dataset = load_dataset(
        data.name,
        data.dir,
        imbalance_ratio=data.imbalance_ratio or "natural",
        test_imbalance_ratio=data.test_imbalance_ratio,
        subset_seed=config.seed.subset,
        imbalance=data.imbalance,
        class_order=data.class_order,
        split_file=data.split_file,
        download=data.download,
        image_size=data.image_size,
        channels=data.channels,
        train_list=data.train_list,
        test_list=data.test_list,
    )
    if config.select.set != "val":
        return TaskData(dataset, dataset.train, None)
    train = dataset.train
    kept, held = holdout_indices(train.labels, config.select.holdout, config.seed.subset, train.num_classes)
    return TaskData(dataset, train.subset(kept), train.subset(held))


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


def _balanced(split: Split, config: RunConfig) -> BalancedPlan:
    db = config.db
    return BalancedPlan(
        split.labels,
        split.num_classes,
        db.gamma,
        db_seed=config.seed.subset if config.seed.db is None else config.seed.db,
        seed=config.seed.train,
        resample=db.resample,
        remainder=db.remainder,
        partial=db.partial,
    )


SAMPLING: dict[str, Callable[[Split, RunConfig], IndexPlan]] = {
    "natural": _natural,
    "balanced": _balanced,
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
    return Augment(aug.pad or 0, bool(aug.flip), aug.pad_mode, policy, aug.cutout)


def build_loader(
    split: Split, config: RunConfig, device: torch.device, on_progress: Callable[[int, int], None] | None = None
) -> Loader:
    """The batches of a stage, by its ``data.sampling``, ``aug`` and ``loader`` settings.

    ``on_progress`` is called with (images read, images in all) where the set is read beforehand.

    Raises:
        LtatError: batches larger than the data, or settings that do not suit it.
    """
    return make_loader(
        split,
        build_plan(split, config),
        kind=config.loader.kind,
        share=config.loader.share,
        workers=config.loader.workers,
        batch_size=config.train.batch_size,
        augment=build_augment(config),
        seed=config.seed.train,
        device=device,
        drop_last=config.train.drop_last,
        on_progress=on_progress,
    )


def pixel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over a split, for pixels in [0, 1]."""
    values, histogram = np.arange(256), channel_histogram(split)
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ values
    deviation = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1)) / 255
    mean = mean / 255
    if (deviation == 0).any():
        raise LtatError("model.normalize=train needs images that vary and a channel is constant; use none")
    return tuple(mean.tolist()), tuple(deviation.tolist())


def channel_histogram(split: Split) -> np.ndarray:
    """How often each channel has each value, int64 [C, 256]."""
    channels = split.images.shape[-1]
    histogram = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(split), 1024):  # a set that is read on demand need not fit into memory
        pixels = split.images[start : start + 1024].reshape(-1, channels)
        histogram += np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
    return histogram


def index_record(data: TaskData, config: RunConfig, given: Mapping[str, str | None]) -> dict[str, Any]:
    """Which images are used for what, as positions in the source set, each list with its hash.

    ``given`` networks (a teacher, the weights a run starts from) stand there too, with the checksum of their weights.
    """
    lists = {"subset": data.dataset.train.indices, "train": data.train.indices}
    if data.dataset.test_imbalance_ratio is not None:
        lists["test"] = data.dataset.test.indices
    if data.val is not None:
        lists["val"] = data.val.indices
    lists["balanced"] = data.train.indices[_balanced(data.train, config).first_draw]
    if config.data.sampling == "file":
        lists["plan"] = data.train.indices[build_plan(data.train, config).epoch(1)]
    return (
        {"classes": class_record(data.dataset)}
        | {name: {"sha256": sha256} for name, sha256 in given.items() if sha256 is not None}
        | {
            name: {"n": len(indices), "sha256": index_hash(indices), "indices": indices.tolist()}
            for name, indices in lists.items()
        }
    )


def class_record(dataset: Dataset) -> dict[str, Any]:
    """The class names, and a hash of them and of the label of each training image.

    Positions alone do not tell a folder whose classes were renamed from the one that was trained on.
    """
    names = json.dumps(list(dataset.class_names)).encode()
    digest = hashlib.sha256(names + np.ascontiguousarray(dataset.train.labels, dtype="<i8").tobytes())
    return {"names": list(dataset.class_names), "sha256": digest.hexdigest()}
