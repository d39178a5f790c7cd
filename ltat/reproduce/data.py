"""The data of a reproduction: the target's own set, or a copy of it under another name, such as `npz`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltat.config import Asked, RunConfig
from ltat.config.resolving import for_dataset
from ltat.data import find_spec, load_dataset
from ltat.errors import LtatError
from ltat.reproduce.cost import Images, images_of
from ltat.sweeps import RunPlan
from ltat.training.run_data import load_data


@dataclass(frozen=True)
class StandIn:
    """A data set that takes the place of a target's own, as it is.

    Attributes:
        name: of the data set, such as ``npz``.
        folder: where it lies.
        images: what it holds.
        shape: (H, W, channels) of an image.
    """

    name: str
    folder: Path | None
    images: Images
    shape: tuple[int, ...]

    def settings(self) -> dict[str, Any]:
        """The settings of a run on it, by dotted name."""
        return {"data.name": self.name, "data.dir": self.folder, "data.imbalance_ratio": "natural"}

    def require_images_of(self, wanted: Images) -> None:
        """Check that it is the long-tailed set that a row is trained on.

        Raises:
            LtatError: other numbers of images.
        """
        if self.images != wanted:
            raise LtatError(
                f"the row is trained on {described(wanted)} and {self.name} in {self.folder} holds "
                f"{described(self.images)}; give a set of those images"
            )


def read_stand_in(name: str, folder: Path | None) -> StandIn:
    """Read the data set that takes a target's place.

    Raises:
        LtatError: it cannot be read.
    """
    dataset = load_dataset(name, folder)
    images = Images(tuple(dataset.train.counts.tolist()), len(dataset.test))
    return StandIn(name, folder, images, tuple(dataset.image_shape))


def described(images: Images) -> str:
    """The images in words."""
    counts = images.counts
    return (
        f"{sum(counts):,} training images of {len(counts)} classes ({max(counts):,} to {min(counts):,}) and "
        f"{images.test:,} test images"
    )


def data_settings(asked: Asked[RunConfig], folder: Path | None, stand_in: StandIn | None) -> Mapping[str, Any]:
    """The settings of a row's data, by dotted name.

    Raises:
        LtatError: the stand-in has other images than the row is trained on.
    """
    if stand_in is not None:
        stand_in.require_images_of(images_of(asked))
        return stand_in.settings()
    return {"data.dir": folder} if find_spec(asked.config.data.name).needs_dir else {}


def require_data(plan: RunPlan) -> None:
    """Read the data of a run, so that a missing folder is said once and not by every run.

    Raises:
        LtatError: the data cannot be read.
    """
    data = for_dataset(plan.asked()).config.data
    if find_spec(data.name).needs_dir and data.dir is None:
        raise LtatError(
            f"{data.name} lies in a folder; say which with --data-dir, or name a copy of it: --dataset npz --data-dir"
        )
    load_data(for_dataset(plan.asked()).config)
