"""Batches that FFCV streams from a .beton file: for sets that do not fit."""

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltat.data.beton.images import BetonImages
from ltat.data.beton.library import load_ffcv
from ltat.data.loaders.base import Batch, Loader, Order
from ltat.data.plans import IndexPlan
from ltat.data.split import Split
from ltat.data.workers import resolve_workers
from ltat.errors import LtatError
from ltat.ops.gather_augment import gather_augment


class FfcvLoader(Loader):
    """FFCV reads, crops and mirrors the images as bytes, some batches ahead; the device makes floats of them.

    Args:
        split: the images and labels; the images lie in a .beton file.
        plan: which image stands at which place of an epoch.
        workers: threads that read; one less than the cores if None.
        settings: as every loader's.

    Raises:
        LtatError: FFCV is missing, images that lie in no .beton file or in one that was changed since it was
            loaded, more workers than cores, and as every loader.
    """

    def __init__(self, split: Split, plan: IndexPlan, *, workers: int | None = None, **settings: Any) -> None:
        super().__init__(split, plan, **settings)
        if not isinstance(split.images, BetonImages):
            raise LtatError(
                "the ffcv loader reads a .beton file and these images lie in none; "
                "write them with ltat data prepare --format beton, then train with --dataset beton"
            )
        self.workers = resolve_workers(workers, least=1)
        load_ffcv()
        from ltat.data.beton.stream import Stream  # noqa: PLC0415

        self._images = split.images
        self._stream = Stream(split.images, self.own_batch_size, self.workers, self.augment.pad_mode)
        self._labels = torch.from_numpy(split.labels).to(self.device)
        self._copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def _batches(self, order: Order) -> Iterator[Batch]:
        positions, draws = order.positions.to(self.device), order.draws.to(self.device)
        with closing(self._served(order)) as served:
            for here, pixels in zip(order.batches(), served, strict=True):
                chosen, own = positions[here], draws.at(here)
                if self.augment.policy is None:
                    images = self.augment.cut(gather_augment(pixels), own)
                else:
                    images = self.augment.apply(pixels, None, own)
                yield Batch(images, self._labels[chosen], chosen)

    def _served(self, order: Order) -> Generator[Tensor]:
        """The pixels of each batch on the device, uint8 [B, H, W, ch]; a policy wants them where they were."""
        positions, moved = order.positions.numpy(), order.draws
        shift, mirrored = moved.shift.numpy(), moved.mirrored.numpy()
        if self.augment.policy is not None:
            shift, mirrored = np.zeros_like(shift), np.zeros_like(mirrored)
        with closing(self._stream.serve(positions, shift, mirrored)) as batches:
            for here, (pixels, failed) in zip(order.batches(), batches, strict=True):
                if failed.any():
                    raise self._images.undecodable(int(positions[here][failed.argmax()]))
                yield self._placed(torch.from_numpy(pixels))

    def _placed(self, pixels: Tensor) -> Tensor:
        """The pixels on the device, before FFCV writes their buffer again.

        On a GPU on a separate stream: the host waits for this copy, not for the computation before it.
        """
        if self._copying is None:
            return pixels
        with torch.cuda.stream(self._copying):
            placed = pixels.to(self.device, non_blocking=True)
        self._copying.synchronize()
        placed.record_stream(torch.cuda.current_stream(self.device))
        return placed
