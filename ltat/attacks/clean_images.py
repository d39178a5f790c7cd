"""The clean images of a long attack: read by position, so that only those under attack are float32."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ltat.data.images import Images, as_floats


@dataclass(frozen=True, eq=False)
class CleanImages:
    """Images that are attacked a batch at a time.

    Attributes:
        shape: N, ch, H, W of them all.
        read: positions int64 [B] → the images there, fp32 [B, ch, H, W] in [0, 1], a copy, on any device.
    """

    shape: tuple[int, ...]
    read: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return self.shape[0]

    def positions(self, size: int) -> Iterator[Tensor]:
        """The positions of all images, in order and in batches of ``size``: int64 [B] each."""
        yield from torch.arange(len(self)).split(size)

    @classmethod
    def of_tensor(cls, x: Tensor) -> "CleanImages":
        """The images ``x``, fp32 [N, ch, H, W] on any device."""
        return cls(tuple(x.shape), lambda positions: x[positions.to(x.device)])

    @classmethod
    def of_stored(cls, images: Images, chosen: np.ndarray) -> "CleanImages":
        """Those of uint8 images [M, H, W, ch] that stand at the positions ``chosen``, int64 [N]; v means v / 255."""
        height, width, channels = images.shape[1:]
        shape = (len(chosen), channels, height, width)
        return cls(shape, lambda positions: as_floats(images[chosen[positions.numpy()]]))
