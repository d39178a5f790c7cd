"""The data of a run: the training images, what is held out of them, and the test images."""

from dataclasses import dataclass
from pathlib import Path

import torch

from ltat.config import RunConfig
from ltat.data import Dataset, Split, find_spec, holdout_indices, load_dataset
from ltat.errors import LtatError


@dataclass(frozen=True, eq=False)
class RunData:
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


def load_data(config: RunConfig) -> RunData:
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
        return RunData(dataset, dataset.train, None)
    train = dataset.train
    kept, held = holdout_indices(train.labels, config.select.holdout, config.seed.subset, train.num_classes)
    return RunData(dataset, train.subset(kept), train.subset(held))


def first_images(data: RunData, n: int, device: torch.device) -> torch.Tensor:
    """The first ``n`` training images as [n, ch, H, W] in [0, 1]."""
    return torch.from_numpy(data.train.images[:n]).permute(0, 3, 1, 2).float().div(255).to(device)
