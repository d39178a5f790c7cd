"""The process in which FFCV's writer runs; ``ltat.data.beton.writing`` watches it."""

import mmap
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ltat.data.beton.format import FIELDS
from ltat.data.beton.library import load_ffcv
from ltat.data.images import Images
from ltat.errors import LtatError

_SAMPLES_AT_ONCE = 16  # per chunk of a worker, which reports progress after each
_FFCV_MODES = {"raw": "raw", "jpeg": "jpg"}
_LONGEST = 1000  # characters of a message: it passes through the pipe in one piece, even from a process that is killed


@dataclass(frozen=True, eq=False)
class Job:
    """The file to write; the arrays are those of ``Split``."""

    path: Path
    images: Images
    labels: np.ndarray
    indices: np.ndarray
    mode: str
    quality: int
    workers: int
    page_size: int


class Message(NamedTuple):
    """A report of the writer: images done (0 when it begins), that the file is complete, or why it failed."""

    done: int = 0
    complete: bool = False
    failed: str = ""


Messages = SimpleQueue[Message]


def run_writer(job: Job, messages: Messages) -> None:
    """Write the file; call this in a new process, which starts workers as its children."""
    os.setpgid(0, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    _silence()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    multiprocessing.set_start_method("fork", force=True)
    _reporting(messages, _write, job, messages)
    messages.put(Message(complete=True))


def _silence() -> None:
    """Failures arrive as messages; the output of FFCV and its workers is discarded."""
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)


def _tell_of_dead_workers(messages: Messages, workers: list[multiprocessing.Process]) -> None:
    while True:
        codes = [worker.exitcode for worker in workers if worker.exitcode]
        if codes:  # a worker that failed has reported its reason before
            how = f"was killed ({signal.Signals(-codes[0]).name})" if codes[0] < 0 else f"ended with code {codes[0]}"
            messages.put(Message(failed=f"a worker {how}; free some memory or use fewer workers"))
            return
        time.sleep(0.1)


def _reporting(messages: Messages, act: Callable[..., None], *arguments: Any) -> None:
    """Call ``act``; an exception becomes a message, and this process ends."""
    try:
        act(*arguments)
    except BaseException as error:
        messages.put(Message(failed=_reason(error)[:_LONGEST]))
        os._exit(1)


def _reason(error: BaseException) -> str:
    if isinstance(error, LtatError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror or error}; free some space or choose another folder"
    return f"{type(error).__name__}: {error}"


def _write(job: Job, messages: Messages) -> None:
    load_ffcv()
    from ffcv import writer  # noqa: PLC0415
    from ffcv.fields import IntField, NDArrayField, RGBImageField  # noqa: PLC0415

    class ReportingWriter(writer.DatasetWriter):
        """FFCV's writer, whose workers report why they fail, and whose shared memory ends with its processes."""

        metadata_sm: Any

        def prepare(self) -> None:
            super().prepare()
            self.metadata_sm.close()
            self.metadata_sm.unlink()
            self.metadata_sm = _SharedMemory(self.num_samples * self.metadata_type.itemsize)

        def _write_common(self, num_samples: int, chunks: Any, work: Callable[..., None], arguments: Any) -> None:
            super()._write_common(num_samples, chunks, partial(_reporting, messages, work), arguments)

    messages.put(Message())
    workers: list[multiprocessing.Process] = []

    def worker(**arguments: Any) -> multiprocessing.Process:
        workers.append(multiprocessing.Process(**arguments))
        return workers[-1]

    writer.Process, writer.tqdm = worker, partial(_Progress, messages)
    threading.Thread(target=_tell_of_dead_workers, args=(messages, workers), daemon=True).start()
    image = (
        RGBImageField(write_mode=_FFCV_MODES[job.mode], jpeg_quality=job.quality)
        if job.images.shape[3] == 3
        else NDArrayField(np.dtype("u1"), job.images.shape[1:])
    )
    fields = dict(zip(FIELDS, (image, IntField(), IntField()), strict=True))
    reporting = ReportingWriter(str(job.path), fields, page_size=job.page_size, num_workers=job.workers)
    reporting.from_indexed_dataset(_Samples(job), chunksize=_SAMPLES_AT_ONCE)


class _SharedMemory:
    """Stands for FFCV's named shared memory, which would outlive a writer that is killed."""

    def __init__(self, size: int) -> None:
        self.buf = mmap.mmap(-1, size)

    def close(self) -> None:
        """Nothing to do: the memory ends with the processes that inherited it."""

    unlink = close


class _Progress:
    """Stands for FFCV's progress bar."""

    def __init__(self, messages: Messages, total: int) -> None:
        self.messages, self.done = messages, 0

    def update(self, more: int) -> None:
        self.done += int(more)
        self.messages.put(Message(done=self.done))

    def close(self) -> None:
        """Nothing to do: there is no bar."""


class _Samples:
    """The samples as FFCV's writer asks for them: image, label, index."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __len__(self) -> int:
        return len(self.job.labels)

    def __getitem__(self, position: int) -> tuple[np.ndarray, int, int]:
        image = self.job.images[np.array([position])][0]
        if image.shape != self.job.images.shape[1:] or image.dtype != np.uint8:
            raise LtatError(
                f"image {position} is {image.dtype} {image.shape} among uint8 {self.job.images.shape[1:]}; "
                "store all images in one shape"
            )
        return image, self.job.labels[position], self.job.indices[position]
