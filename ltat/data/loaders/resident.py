"""Batches from images that stay on the device: nothing is read or copied after the first epoch began."""

from collections.abc import Iterator
from typing import Any

import torch

from ltat.data.loaders.base import Batch, Loader, Order
from ltat.data.plans import IndexPlan
from ltat.data.split import Split


class ResidentLoader(Loader):
    """The uint8 images of the whole split lie on the device once; a batch is one pass over the pixels it needs."""

    def __init__(self, split: Split, plan: IndexPlan, **settings: Any) -> None:
        super().__init__(split, plan, **settings)
        self._images = split.images_on(self.device, self.on_progress)
        self._labels = torch.from_numpy(split.labels).to(self.device)

    def _batches(self, order: Order) -> Iterator[Batch]:
        positions, draws = order.positions.to(self.device), order.draws.to(self.device)
        for here in order.batches():
            chosen = positions[here]
            yield Batch(self.augment.apply(self._images, chosen, draws.at(here)), self._labels[chosen], chosen)
