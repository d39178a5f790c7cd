"""Writing a split as a .beton file, complete or not at all.

FFCV's writer waits for ever for a worker that died, and leaves what it has written so far under the file's name. So
it runs in a separate process, which is supervised here and ended, with all its workers, on any failure.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import numpy as np

from ltat import __version__
from ltat.data.beton.format import ALLOCATION, MODES, SMALLEST_PAGE, Beton, data_start, look_through
from ltat.data.beton.library import INSTALL
from ltat.data.beton.sidecar import FORMAT, Sidecar, file_sha256, sidecar_path
from ltat.data.beton.writer_process import Job, Message, run_writer
from ltat.data.split import Split
from ltat.data.workers import resolve_workers
from ltat.errors import LtatError
from ltat.files import replacing

STARTED_WITHIN = 600.0  # seconds in which the writer has imported FFCV, which takes minutes on a machine at work
STALLED_AFTER = 60.0  # seconds without a written image, from then on
_IMAGES_PER_PAGE = 8  # at least; what is left of a page stays empty
_LEAST_JPEG = 0.02  # share of the raw pixels below which no jpeg file is expected


def write_beton(
    split: Split,
    path: Path,
    class_names: tuple[str, ...],
    *,
    name: str,
    mode: str = "raw",
    quality: int = 95,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a split as a .beton file with FFCV's writer, and beside it ``<path>.json`` with its checksum.

    Colour images become FFCV's RGB field, which its stock pipelines read too; others become uint8 arrays. With one
    worker the same split gives the same bytes.

    Args:
        split: what to write; its images may lie in a store that reads them on demand.
        path: the file; one that is there is replaced when the new one is complete.
        class_names: one per class.
        name: of the dataset, for the sidecar.
        mode: "raw", or "jpeg" for colour images (which alters the pixels).
        quality: of the jpeg images, 1..100.
        workers: processes that read and encode the images.
        on_progress: called with (images written, images in all) from time to time.

    Raises:
        LtatError: FFCV is missing, a full disk, an image that cannot be read, a writer that died or came to a
            standstill, or arguments that do not fit. Nothing half-written is left under ``path``.
    """
    workers = resolve_workers(workers, least=1)
    _check(split, class_names, mode, quality)
    page_size = _page_size(split)
    _check_space(split, path, mode, page_size)
    with replacing(sidecar_path(path)) as beside, replacing(path) as temporary:
        job = Job(temporary, split.images, split.labels, split.indices, mode, quality, workers, page_size)
        _write(job, path, on_progress or (lambda done, total: None))
        sidecar = _sidecar(split, path, temporary, class_names, name, mode)
        _check_written(look_through(temporary, sidecar), split)
        beside.write_text(sidecar.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _check(split: Split, class_names: tuple[str, ...], mode: str, quality: int) -> None:
    if find_spec("ffcv") is None:
        raise LtatError(f"a .beton file is written by FFCV, which is missing; install it with {INSTALL}")
    if mode not in MODES:
        raise LtatError(f"unknown mode {mode!r} of a .beton file; choose raw or jpeg")
    if mode == "jpeg" and split.images.shape[3] != 3:
        raise LtatError(f"jpeg stores colour images and these have {split.images.shape[3]} channels; use mode raw")
    if not 1 <= quality <= 100:
        raise LtatError(f"jpeg quality {quality} is outside 1..100; 95 is usual")
    if len(class_names) != split.num_classes:
        raise LtatError(f"{len(class_names)} names for {split.num_classes} classes; give one per class")


def _image_bytes(split: Split) -> int:
    return int(np.prod(split.images.shape[1:]))


def _page_size(split: Split) -> int:
    page_size = SMALLEST_PAGE
    while page_size < _IMAGES_PER_PAGE * _image_bytes(split):
        page_size *= 2
    return page_size


def _check_space(split: Split, path: Path, mode: str, page_size: int) -> None:
    """Refuse what cannot fit, before an hour is spent on it; what might fit is tried."""
    n, image = len(split), _image_bytes(split)
    pages = -(-n // (page_size // image))
    pixels = pages * page_size if mode == "raw" else int(_LEAST_JPEG * n * image)
    needed = data_start(n, split.images.shape[3] == 3, page_size) + pixels + n * ALLOCATION.itemsize
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise LtatError(
            f"cannot write {path}: it takes {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free; "
            "free some space or choose another folder"
        )


def _write(job: Job, path: Path, on_progress: Callable[[int, int], None]) -> None:
    # Forked, as FFCV forks its workers: a split of many gigabytes is neither copied nor pickled, and the caller's
    # own process never imports FFCV.
    context = multiprocessing.get_context("fork")
    messages: SimpleQueue[Message] = context.SimpleQueue()
    process = context.Process(target=run_writer, args=(job, messages))
    process.start()
    try:
        for done in _heard(process, messages, path):
            on_progress(done, len(job.labels))
    finally:
        _end(process)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """Kill the process and all its workers; it leads their group, unless it had no time yet to make one."""
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _heard(process: multiprocessing.process.BaseProcess, messages: "SimpleQueue[Message]", path: Path) -> Iterator[int]:
    """Images written so far, at each report of the writer, until it is done."""
    last, begun = time.monotonic(), False
    while True:
        alive = (
            process.is_alive()
        )  # read first, so that the messages of a process that ends meanwhile are still received
        if not messages.empty():
            message, last, begun = messages.get(), time.monotonic(), True
            if message.failed:
                raise LtatError(f"cannot write {path}: {message.failed}")
            if message.complete:
                return
            yield message.done
        elif not alive:
            raise LtatError(f"cannot write {path}: its writer ended with code {process.exitcode}; free some memory")
        elif not begun and time.monotonic() - last > STARTED_WITHIN:
            raise LtatError(
                f"cannot write {path}: FFCV was not imported within {STARTED_WITHIN:.0f} s; "
                "check its folder and the load of the machine"
            )
        elif begun and time.monotonic() - last > STALLED_AFTER:
            raise LtatError(
                f"cannot write {path}: no image was written for {STALLED_AFTER:.0f} s; "
                "check the folder the images come from and the one they go to"
            )
        else:
            time.sleep(0.02)


def _sidecar(split: Split, path: Path, written: Path, class_names: tuple[str, ...], name: str, mode: str) -> Sidecar:
    height, width, channels = split.images.shape[1:]
    return Sidecar(
        format=FORMAT,
        dataset=name,
        part=path.stem,
        mode=mode,
        shape=(height, width, channels),
        class_names=class_names,
        counts=tuple(split.counts.tolist()),
        size=written.stat().st_size,
        sha256=file_sha256(written),
        ltat=__version__,
    )


def _check_written(beton: Beton, split: Split) -> None:
    """Check the file before it gets its name: on a nearly full disk a write can be short without an error."""
    if not (np.array_equal(beton.labels, split.labels) and np.array_equal(beton.indices, split.indices)):
        raise LtatError(f"{beton.path} does not hold the labels that were to be written; write it again")
