"""FFCV's loader with an operation of our own: each image read, shifted and mirrored in one pass over its pixels.

This module imports FFCV, so it is itself imported only after ``load_ffcv``.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import cached_property
from queue import Empty
from typing import Any, NamedTuple

import numpy as np
from ffcv.libffcv import imdecode
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.loader.loader import Loader, OrderOption
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.pipeline_spec import PipelineSpec

from ltat.data.beton.images import BetonImages
from ltat.errors import LtatError

STALLED_AFTER = 120.0  # seconds without a batch
_LISTEN = 0.5  # seconds between two checks that the thread is alive
_LAST_WAIT = 5.0  # seconds for a thread to end; one that hangs in a read cannot be ended


class Served(NamedTuple):
    """One batch, in buffers that FFCV writes again a few batches later: copy them to keep them."""

    pixels: np.ndarray  # uint8 [B, H, W, ch]
    failed: np.ndarray  # uint8 [B], 1 where a jpeg could not be decoded


class Stream(Loader):
    """FFCV's loader over the images of a .beton file, in any order and with any shifts.

    Args:
        images: the images; the file is the one that was checked.
        batch_size: images per batch.
        workers: Numba threads of the operation.
        pad_mode: padding of a shifted image, as in ``ltat.ops.gather_augment``.

    Raises:
        LtatError: the file was changed since it was checked.
    """

    def __init__(self, images: BetonImages, batch_size: int, workers: int, pad_mode: str) -> None:
        images.check_unchanged()
        self.images = images
        image = PipelineSpec("image", decoder=ReadAndMove(images.image_shape, images.mode == "jpeg", pad_mode))
        super().__init__(
            str(images.path),
            batch_size,
            num_workers=workers,
            os_cache=True,
            order=OrderOption.SEQUENTIAL,
            seed=0,  # without one FFCV draws it from NumPy's global generator
            drop_last=False,
            pipelines={"image": image, "label": None, "index": None},
        )

    def serve(self, positions: np.ndarray, shift: np.ndarray, mirrored: np.ndarray) -> Generator[Served]:
        """The images at these positions, batch after batch.

        FFCV hands its operations the entries of the order as they are, so that an entry may hold more than a number.

        Args:
            positions: int64 [n], positions in the images.
            shift: int64 [n, 2], rows and columns, as in ``ltat.ops.gather_augment``.
            mirrored: bool [n].

        Raises:
            LtatError: no batch came for two minutes.
            RuntimeError: the operation failed.
        """
        where = (self.images.pointers[positions], self.images.sizes[positions])
        order = np.column_stack([*where, shift, mirrored]).astype(np.int64)
        epoch = _Epoch(self, order)
        try:
            while (served := epoch.next_batch()) is not None:
                yield served
        finally:
            epoch.end()


class ReadAndMove(Operation):
    """From an entry of the order (pointer, size, row shift, column shift, mirrored) to an image.

    Integers alone: FFCV compiles with ``fastmath``, and nothing here may be rounded differently.
    """

    def __init__(self, image_shape: tuple[int, int, int], jpeg: bool, pad_mode: str) -> None:
        super().__init__()
        self.image_shape, self.jpeg, self.pad_mode = image_shape, jpeg, pad_mode

    def declare_state_and_memory(self, previous_state: Any) -> tuple[Any, tuple[AllocationQuery, ...]]:
        """The images, room to decode jpegs, and which of them failed."""
        kind = np.dtype("u1")
        decoded = self.image_shape if self.jpeg else (0, 0, 0)
        state = replace(previous_state, jit_mode=True, shape=self.image_shape, dtype=kind)
        return state, tuple(AllocationQuery(shape, kind) for shape in (self.image_shape, decoded, ()))

    def generate_code(self) -> Callable[..., Any]:
        """The function that FFCV compiles; it asks for it again every epoch."""
        return self._code

    @cached_property
    def _code(self) -> Callable[..., Any]:
        each = Compiler.get_iterator()
        height, width, channels = self.image_shape
        move = Compiler.compile(_mover(Compiler.compile(LOCATE[self.pad_mode]), height, width, channels))
        decode = Compiler.compile(imdecode)
        jpeg = self.jpeg

        def read_and_move(order, memory, metadata, storage):  # type: ignore[no-untyped-def]
            images, decoded, failed = memory
            content = storage[0]
            for k in each(len(order)):
                pointer, size, down, right, mirrored = order[k]
                stored = content[pointer : pointer + size]
                failed[k] = 0
                if jpeg:
                    code = decode(stored, decoded[k], height, width, height, width, 0, 0, 1, 1, False, False)
                    failed[k] = code != 0
                    move(decoded[k].reshape(-1), images[k], down, right, mirrored)
                else:
                    move(stored, images[k], down, right, mirrored)
            return images, failed

        read_and_move.is_parallel = True  # type: ignore[attr-defined]
        return read_and_move


def _mover(locate: Callable[[int, int], int], height: int, width: int, channels: int) -> Callable[..., Any]:
    # The shape is a constant to the compiler, which makes the copy four times as fast.
    def move(source, image, down, right, mirrored):  # type: ignore[no-untyped-def]
        for i in range(height):
            row = locate(i + down, height)
            if row < 0:
                image[i] = 0
                continue
            line = source[row * width * channels : (row + 1) * width * channels]
            for j in range(width):
                column = locate((width - 1 - j if mirrored else j) + right, width)
                for c in range(channels):
                    image[i, j, c] = line[column * channels + c] if column >= 0 else 0

    return move


def _zero(position, size):  # type: ignore[no-untyped-def]
    return position if 0 <= position < size else -1


def _reflect(position, size):  # type: ignore[no-untyped-def]
    return size - 1 - abs(size - 1 - abs(position))


LOCATE = {"zero": _zero, "reflect": _reflect}
"""Which pixel of an axis shows at a position, -1 for none; the keys are those of ``gather_augment.PADDINGS``."""


class _Epoch(EpochIterator):
    """FFCV's thread that fills the buffers, without its ways of waiting for ever."""

    def __init__(self, stream: Stream, order: np.ndarray) -> None:
        self.failure: BaseException | None = None
        super().__init__(stream, order)

    def run(self) -> None:
        """Fill buffers until the order is through; a failure is kept for whoever waits."""
        try:
            super().run()
        except BaseException as error:
            self.failure = error

    def next_batch(self) -> Served | None:
        """The next batch, or None after the last."""
        begun = time.monotonic()
        while True:
            alive = self.is_alive()  # read first, so that a batch of a thread that ends meanwhile is still taken
            try:
                result = self.output_queue.get(timeout=_LISTEN if alive else 0)
            except Empty:
                self._check(alive, begun)
            else:
                return None if result is None else Served(*result[1][0])

    def _check(self, alive: bool, begun: float) -> None:
        path = self.loader.images.path
        if not alive:
            raise RuntimeError(f"FFCV's pipeline over {path} failed: {self.failure!r}") from self.failure
        if time.monotonic() - begun > STALLED_AFTER:
            raise LtatError(f"FFCV gave no batch of {path} for {STALLED_AFTER:.0f} s; check the disk it lies on")

    def end(self) -> None:
        """End the thread, wherever it stands in its order, and let go of its buffers."""
        self.iter_ixes = iter(())
        self.terminate_event.set()
        given_up = time.monotonic() + _LAST_WAIT
        while self.is_alive() and time.monotonic() < given_up:
            while not self.output_queue.empty():  # a thread that wants to hand over a batch waits for room
                self.output_queue.get()
            self.join(0.01)
