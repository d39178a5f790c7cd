"""The images of a .beton file, read when they are asked for."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ltat.data.beton.format import Beton, Stamp, stamp_of
from ltat.data.beton.library import load_ffcv
from ltat.data.images import ImageStore
from ltat.errors import LtatError


@dataclass(frozen=True, eq=False)
class BetonImages(ImageStore):
    """Images of a .beton file that ``read_beton`` found to be whole.

    Raw images are copied out of the mapped file and need no FFCV; jpeg images are decoded by FFCV's own decoder, so
    that every loader sees the same pixels.

    Attributes:
        path: the file.
        stamp: the file's size and time when it was checked.
        mode: "raw" or "jpeg".
        image_shape: height, width, channels.
        rows: int64 [N], which of the file's images these are.
        pointers: int64 [N], where the bytes of each begin.
        sizes: int64 [N], how many they are.
    """

    path: Path
    stamp: Stamp
    mode: str
    image_shape: tuple[int, int, int]
    rows: np.ndarray
    pointers: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, beton: Beton) -> "BetonImages":
        """All images of a file."""
        rows = np.arange(len(beton.pointers))
        return cls(beton.path, beton.stamp, beton.sidecar.mode, beton.sidecar.shape, rows, beton.pointers, beton.sizes)

    @property
    def shape(self) -> tuple[int, int, int, int]:  # type: ignore[override]
        """N, height, width, channels."""
        return len(self.rows), *self.image_shape

    def read(self, positions: np.ndarray) -> np.ndarray:
        """The images at these positions, int64 [B]: uint8 [B, H, W, ch]; see ``ImageStore``."""
        images = np.zeros((len(positions), *self.image_shape), np.uint8)
        copy = self._decode if self.mode == "jpeg" else self._copy
        for image, position in zip(images, positions.tolist(), strict=True):
            start = self.pointers[position]
            copy(self._content[start : start + self.sizes[position]], image, position)
        return images

    def subset(self, positions: np.ndarray) -> "BetonImages":
        """The images at these positions, int64 [M], in that order; nothing is read."""
        chosen = (values[positions] for values in (self.rows, self.pointers, self.sizes))
        return BetonImages(self.path, self.stamp, self.mode, self.image_shape, *chosen)

    def check_unchanged(self) -> None:
        """Refuse a file that has changed since it was checked: its addresses could point anywhere.

        Raises:
            LtatError: it was replaced, altered or removed.
        """
        try:
            same = stamp_of(self.path) == self.stamp
        except OSError as error:
            raise LtatError(f"{self.path} cannot be read any more ({error.strerror}); load the data again") from error
        if not same:
            raise LtatError(f"{self.path} was changed after it was checked; load the data again")

    def undecodable(self, position: int) -> LtatError:
        """The error on an image whose jpeg bytes are broken."""
        return LtatError(f"{self.path}: image {self.rows[position]} is not a jpeg that can be decoded; write it again")

    @cached_property
    def _content(self) -> np.ndarray:
        self.check_unchanged()
        return np.memmap(self.path, mode="r")

    def _copy(self, stored: np.ndarray, image: np.ndarray, position: int) -> None:
        image.reshape(-1)[:] = stored

    def _decode(self, stored: np.ndarray, image: np.ndarray, position: int) -> None:
        load_ffcv()
        from ffcv.libffcv import imdecode  # noqa: PLC0415

        height, width = image.shape[:2]
        if imdecode(stored, image, height, width, height, width) != 0:
            raise self.undecodable(position)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_content"}
