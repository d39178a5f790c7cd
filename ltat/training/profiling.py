"""A few training steps as a Chrome trace, to be read in chrome://tracing or ui.perfetto.dev."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from ltat.files import replacing

SKIPPED = 3  # the first steps allocate, choose kernels, compile
RECORDED = 3


class StepTrace:
    """Records :data:`RECORDED` steps after the first :data:`SKIPPED` into ``path``; a context manager.

    ``written`` is whether it has: a run that ends earlier leaves no file.
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
        """``on_step``, called with the images of a step, and the step counted."""

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
