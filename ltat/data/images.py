"""Images that are read when they are asked for, for sets that need not fit into memory."""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor


class ImageStore(ABC):
    """Stands where an array uint8 [N, H, W, ch] could stand, and reads the images asked for.

    A store can be sent to the worker processes of a loader: it holds paths and numbers, no open file.
    """

    shape: tuple[int, int, int, int]
    dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        n, height, width, channels = self.shape
        return n * height * width * channels

    def __getitem__(self, chosen: slice | np.ndarray) -> np.ndarray:
        """The images of a slice, or at int64 positions [B] (repeats are allowed): uint8 [B, H, W, ch]."""
        return self.read(np.arange(*chosen.indices(len(self))) if isinstance(chosen, slice) else chosen)

    @abstractmethod
    def read(self, positions: np.ndarray) -> np.ndarray:
        """The images at these positions, int64 [B]: uint8 [B, H, W, ch], C-contiguous.

        Raises:
            LtatError: a file that cannot be read, by its name.
        """

    @abstractmethod
    def subset(self, positions: np.ndarray) -> "ImageStore":
        """The store of the images at these positions, without reading them."""


Images = np.ndarray | ImageStore
"""uint8 [N, H, W, ch], in memory or read on demand."""


def as_floats(images: np.ndarray) -> Tensor:
    """uint8 [B, H, W, ch] → fp32 [B, ch, H, W] in [0, 1], contiguous."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float().div_(255)
