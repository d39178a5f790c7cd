"""Batches read by the worker processes of torch's DataLoader: for whatever neither fits nor streams."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ltat.data.augment import Augment
from ltat.data.images import Images
from ltat.data.loaders.base import Batch, Loader, Order
from ltat.data.plans import IndexPlan
from ltat.data.split import Split
from ltat.data.workers import cores, resolve_workers
from ltat.errors import LtatError

STALLED_AFTER = 120.0  # seconds without a batch


class TorchLoader(Loader):
    """The workers read the images and apply the policy; crop, flip and scaling happen on the device.

    Args:
        split: the images and labels.
        plan: which image stands at which place of an epoch.
        workers: processes, 0 to read in this one; if None one less than the cores, but 0 for images in memory,
            which are read faster than they are sent from one process to another, and 0 on one core.
        settings: as every loader's.

    Raises:
        LtatError: more workers than cores, and as every loader.
    """

    def __init__(self, split: Split, plan: IndexPlan, *, workers: int | None = None, **settings: Any) -> None:
        super().__init__(split, plan, **settings)
        in_memory = isinstance(split.images, np.ndarray) and self.augment.policy is None
        read_here = in_memory or cores() == 1
        self.workers = 0 if workers is None and read_here else resolve_workers(workers, least=0)
        self._labels = torch.from_numpy(split.labels).to(self.device)

    def _batches(self, order: Order) -> Iterator[Batch]:
        read = DataLoader(
            _Reading(self.split.images, self.augment, order),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            timeout=STALLED_AFTER if self.workers else 0,
            generator=torch.Generator(),  # else it would draw from the generator of the whole process
        )
        positions, draws = order.positions.to(self.device), order.draws.to(self.device)
        for here, pixels in zip(order.batches(), _checked(read), strict=True):
            chosen = positions[here]
            images = self.augment.crop(pixels.to(self.device, non_blocking=True), None, draws.at(here))
            yield Batch(images, self._labels[chosen], chosen)


class _Reading(Dataset[Tensor | str]):
    """Item k is batch k: uint8 [B, H, W, ch], or the sentence of what went wrong."""

    def __init__(self, images: Images, augment: Augment, order: Order) -> None:
        self.images, self.augment, self.order = images, augment, order
        self.batches = order.batches()

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: int) -> Tensor | str:
        here = self.batches[k]
        try:
            pixels = self.images[self.order.positions[here].numpy()]
        except LtatError as error:  # DataLoader would wrap it in the worker's traceback
            return str(error)
        return self.augment.alter(torch.from_numpy(pixels), self.order.draws.at(here))


@contextmanager
def dead_workers_reported() -> Iterator[None]:
    """The end of a DataLoader's worker as a sentence; torch raises it by a signal, wherever the program then stands.

    Raises:
        LtatError: a worker died, or came to a standstill.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        if reason.startswith("DataLoader timed out"):
            raise LtatError(
                f"the loader's workers gave no batch for {STALLED_AFTER:.0f} s; check the disk the images lie on"
            ) from error
        if not reason.startswith("DataLoader worker"):  # what a worker itself raises arrives as it is
            raise
        raise LtatError(f"a loader worker died ({reason}); lower loader.workers or free some memory") from error


def _checked(read: "DataLoader[Tensor | str]") -> Iterator[Tensor]:
    batches = iter(read)
    try:
        with dead_workers_reported():
            for pixels in batches:
                if isinstance(pixels, str):
                    raise LtatError(pixels)
                yield pixels
    finally:
        # An exception keeps the iterator alive, and with it the workers, for as long as it is referenced itself.
        getattr(batches, "_shutdown_workers", lambda: None)()
