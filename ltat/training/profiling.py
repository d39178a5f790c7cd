"""A Chrome trace of a few training steps, for chrome://tracing or ui.perfetto.dev."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ltat.files import replacing

SKIPPED = 3  # the first steps allocate memory, choose kernels and compile
RECORDED = 3


class StepTrace:
    """Records :data:`RECORDED` steps after the first :data:`SKIPPED` into ``path``; a context manager.

    ``written`` is whether the file exists: a run that ends earlier writes none.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=SKIPPED - 1, warmup=1, active=RECORDED, repeat=1),
            on_trace_ready=self._write,
        )
        self._steps = 0
        self.written = False

    def __enter__(self) -> "StepTrace":
        self._profile.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._profile.stop()

    def counting(self, on_step: Callable[[int], None]) -> Callable[[int], None]:
        """A function that calls ``on_step`` with the number of images of a step and counts the step."""

        def counted(images: int) -> None:
            on_step(images)
            self._steps += 1
            self._profile.step()

        return counted

    def _write(self, recorded: profile) -> None:
        if self._steps >= SKIPPED + RECORDED:
            with replacing(self.path) as temporary:
                recorded.export_chrome_trace(str(temporary))
            self.written = True
