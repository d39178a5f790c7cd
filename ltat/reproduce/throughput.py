"""The image passes per second of this machine: from finished epochs, or measured in a second and kept in a file."""

import json
import platform
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltat.config import Asked, RunConfig
from ltat.config.resolving import for_dataset, resolve
from ltat.data.workers import available_cores
from ltat.files import atomic_write_text, read_text
from ltat.models import build_model
from ltat.reproduce.cost import CLASSES, passes_of_step
from ltat.sweeps import RunPlan
from ltat.training.environment import pick_device
from ltat.training.run_folder import parsed_row

SHAPES = {"cifar10": (32, 32, 3), "cifar100": (32, 32, 3), "tiny-imagenet": (64, 64, 3), "digits": (8, 8, 1)}
"""(H, W, channels) of the images of sets whose files need not be there."""
USUAL = (32, 32, 3)
SECONDS = 1.0
LARGEST_BATCH = 128
LARGEST = 1 << 26  # bytes of a file that is read
FILE = "throughput.json"


@dataclass(frozen=True)
class Workload:
    """What decides how fast a pass is: network, image shape (H, W, channels), device and precision."""

    model: str
    shape: tuple[int, ...]
    device: str
    precision: str

    def __str__(self) -> str:
        height, width, channels = self.shape
        return f"{self.model}, {height}x{width}x{channels}, {self.device}, {self.precision}"


def workload_of(asked: Asked[RunConfig], shape: tuple[int, ...] | None = None) -> Workload:
    """The workload of a run; ``shape`` is that of its images where they are known."""
    config = for_dataset(asked).config
    if shape is None:
        size, usual = config.data.image_size, SHAPES.get(config.data.name, USUAL)
        shape = usual if size is None else (size, size, config.data.channels or usual[2])
    return Workload(config.model.name, shape, pick_device(config.train.device).type, config.train.precision)


def machine() -> str:
    """The name of this machine, and what it computes on."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return f"{platform.node()}, {len(available_cores())} cores" + "".join(f", {gpu}" for gpu in gpus)


class Throughput:
    """Passes per second by workload, of all cores or of one GPU; what is measured is kept in a file."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self.measured: dict[str, float] = {}
        kept = _read(self.file)
        if kept.get("machine") == machine():
            known = kept.get("passes_per_second", {})
            self.measured = {name: float(value) for name, value in known.items() if isinstance(value, int | float)}

    def learn(self, workload: Workload, plans: Iterable[RunPlan]) -> None:
        """Take the speed of a workload from the finished epochs of runs of it, if there are any."""
        rates = [rate for plan in plans if (rate := rate_of(plan)) is not None]
        if rates:
            self.measured[str(workload)] = statistics.median(rates)

    def of(self, workload: Workload) -> float:
        """The passes per second of a workload; measured where they are not known."""
        name = str(workload)
        if name not in self.measured:
            self.measured[name] = measure(workload)
            content = {"machine": machine(), "passes_per_second": self.measured}
            atomic_write_text(self.file, json.dumps(content, indent=2) + "\n")
        return self.measured[name]


def rate_of(plan: RunPlan) -> float | None:
    """The passes per second of a run's epochs on this machine; ``None`` before its first, or if it ran elsewhere.

    A run on some of the cores counts as if all cores ran such runs.
    """
    environment = _read(plan.folder / "env.json")
    if environment.get("machine") != platform.node():
        return None
    rows = [
        row for row in _rows(plan.folder / "metrics.jsonl") if row["stage"] == "student" and row.get("images_per_s")
    ]
    if not rows:
        return None
    config = resolve(plan.asked(), CLASSES)
    rates = [row["images_per_s"] * passes_of_step(config, row["epoch"]) for row in rows]
    shares = len(available_cores()) / max(1, int(environment.get("threads", 1)))
    return statistics.median(rates) * (shares if environment.get("device") == "cpu" else 1.0)


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        return [row for row in map(parsed_row, file.read_bytes().splitlines()) if row]
    except OSError:
        return []


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file, LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def measure(workload: Workload, seconds: float = SECONDS) -> float:
    """Passes per second: the forward and backward of a batch of noise with plain PyTorch, after others to warm up.

    The batch is as large as the time allows. Threads on some of the cores count as if all cores ran such work.
    """
    step = NoiseStep(workload)
    step.take(1)
    n = max(1, min(LARGEST_BATCH, int(seconds / step.take(1))))
    if workload.device == "cuda":
        step.take(n)
    share = len(available_cores()) / torch.get_num_threads() if workload.device == "cpu" else 1.0
    return n / step.take(n) * share


class NoiseStep:
    """A forward and a backward of noise."""

    def __init__(self, workload: Workload) -> None:
        self.device, self.shape = torch.device(workload.device), workload.shape
        network = build_model(workload.model, num_classes=CLASSES, in_channels=workload.shape[2])
        self.network = network.to(self.device).to(memory_format=torch.channels_last).train()
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(workload.precision)

    def take(self, n: int) -> float:
        """The seconds that a batch of ``n`` images takes."""
        height, width, channels = self.shape
        images = torch.rand(n, channels, height, width, device=self.device)
        images = images.to(memory_format=torch.channels_last)
        started = time.perf_counter()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            loss = self.network(images).float().logsumexp(dim=1).mean()
        loss.backward()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started
