"""The data of a run: the training images, the held-out part of them, and the test images."""

from dataclasses import dataclass

import torch

from ltat.config import RunConfig
from ltat.data import Dataset, Split, holdout_indices, load_dataset


@dataclass(frozen=True, eq=False)
class RunData:
    """The data of a run: ``train`` is the part of D = ``dataset.train`` for training, ``val`` the held-out part."""

    dataset: Dataset
    train: Split
    val: Split | None


def load_data(config: RunConfig) -> RunData:
    """Load the data set and hold out the validation part; the settings that the data set decides must be complete.

    Raises:
        LtatError: an error of :func:`ltat.data.load_dataset`, or a class too small to hold images out.
    """
    data = config.data
    dataset = load_dataset(
        data.name,
        data.dir,
        imbalance_ratio=data.imbalance_ratio,
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
