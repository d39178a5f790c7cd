"""An AT-BSL training step, attack and update, and its peak memory. Run: python -m bench.train_step.

`plain` is the step of bench/plain_at_bsl.py, `compile` the same on torch.compile(network), `plain graph` its replay as
one CUDA graph; `ltat …` is ltat's trainer by its settings, `ltat bf16 graph` with attack and update as one each. On a
CPU, where a step costs seconds, everyone takes a quarter of the batch and two attack steps, warmed up by one call, and
only `plain` and ltat's fastest the whole. Peak memory is measured in a fresh process each: what two steps add to it, as
Linux tells it (CPU), or to what torch keeps of the device, the pools of graphs included (CUDA, after warm-up steps).
"""

import gc
import re
import subprocess
import sys
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import torch

from bench._harness import (
    ROOT,
    TRIALS,
    Run,
    Spread,
    append,
    bench_options,
    best_compiled,
    compare,
    graphed,
    network_cases,
    release_freed_memory,
    tried,
    write_rows,
)
from bench._training import (
    COUNTS,
    FASTEST,
    GRAPH,
    GRAPH_SETTINGS,
    SETTINGS,
    Plain,
    Workload,
    gpu_settings,
    make_plain,
    make_trainer,
    random_split,
)
from bench.attack import NETWORK_MODES
from bench.plain_at_bsl import train_step
from ltat.data import Batch


class MemoryCase(NamedTuple):
    """The network, the images of a batch, and where its step runs."""

    model: str
    images: int
    device: torch.device


def make_batch(workload: Workload) -> tuple[torch.Tensor, torch.Tensor]:
    batch = workload.recipe.batch_size
    labels = torch.as_tensor(workload.train.labels, device=workload.device)
    return torch.rand(batch, 3, 32, 32, device=workload.device), labels[torch.randint(len(labels), (batch,))]


def plain_run(plain: Plain, workload: Workload) -> Run:
    x, y = make_batch(workload)
    return lambda: train_step(plain.network, plain.optimizer, x, y, plain.log_prior, plain.recipe)


def ltat_run(workload: Workload, settings: tuple[str, ...]) -> Run:
    trainer = make_trainer(workload, settings)
    trainer.network.train()
    x, y = make_batch(workload)
    batch = Batch(x.contiguous(memory_format=torch.channels_last), y, torch.arange(len(y), device=y.device))
    counts, steps = trainer.class_counts(1), iter(range(1_000_000))
    return lambda: trainer.train_step(trainer.step(batch, 1, next(steps), counts))


def candidates(workload: Workload) -> dict[str, Run]:
    """All candidates."""

    def compiled(compile) -> Run:
        return plain_run(make_plain(workload, compile), workload)

    runs = {"plain": plain_run(make_plain(workload), workload)}
    runs |= {name: ltat_run(workload, settings) for name, settings in SETTINGS.items()}
    for name, settings in gpu_settings(workload.device).items():
        runs |= tried(name, partial(ltat_run, workload, settings))
    runs |= tried("compile", lambda: best_compiled(compiled, workload.device, NETWORK_MODES))
    if workload.device.type == "cuda":
        runs |= tried("plain graph", lambda: graphed(plain_run(make_plain(workload), workload)))
    return runs


def one(workload: Workload, candidate: str) -> Run:
    if candidate == "plain":
        return plain_run(make_plain(workload), workload)
    return ltat_run(workload, GRAPH_SETTINGS if candidate == GRAPH else SETTINGS[candidate])


def process_peak(run: Run, calls: int = 2) -> float:
    """Bytes that so many calls need at most above what this process held before the first."""
    gc.collect()
    release_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    standing = process_memory("VmRSS")
    for _ in range(calls):
        run()
    return process_memory("VmHWM") - standing


def process_memory(field: str) -> int:
    """Bytes of this process by Linux's counters: VmRSS is the current value, VmHWM the peak."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def device_peak(run: Run) -> float:
    """Bytes that torch keeps of the device in two calls at most, above what it kept before the first.

    Before the two, cuDNN has tried its algorithms and what is captured has been recorded. Graphs keep their pools.
    """
    gc.collect()
    torch.cuda.empty_cache()
    standing = torch.cuda.memory_reserved()
    for _ in range(TRIALS):
        run()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        run()
    return torch.cuda.max_memory_reserved() - standing


PEAKS = {"cpu": process_peak, "cuda": device_peak}
PEAKS_OF = {"cpu": ("plain", *SETTINGS), "cuda": ("plain", FASTEST, GRAPH)}


def peak_mib(case: MemoryCase, candidate: str) -> float:
    """Peak MiB of a separate process, whose memory holds nothing of another candidate."""
    command = [sys.executable, "-m", "bench.train_step", "--peak-of", candidate, "--device", str(case.device)]
    command += ["--threads", str(torch.get_num_threads()), "--model", case.model, "--batch", str(case.images)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return float(done.stdout.split()[-1])


def bench_memory(case: MemoryCase, measured: Collection[str]) -> None:
    """Rows of the peaks of those that could be ``measured``; on a GPU machine, which has room, side by side."""
    chosen = [candidate for candidate in PEAKS_OF[case.device.type] if candidate in measured]
    with ThreadPoolExecutor(len(chosen) if case.device.type == "cuda" else 1) as pool:
        peaks = {c: Spread.of([mib]) for c, mib in zip(chosen, pool.map(partial(peak_mib, case), chosen), strict=True)}
    write_rows("train_step", f"{case.model} {case.images}x3x32x32 peak memory", case.device, "MiB", peaks)


def make_task(name: str, batch: int, steps: int, device: torch.device) -> Workload:
    settings = (f"model.name={name}", f"train.batch_size={batch}", f"attack.steps={steps}")
    return Workload(random_split(COUNTS), (*settings, "data.name=cifar10"), device)


@click.command()
@bench_options(rounds=3)
@click.option("--model", "name", default="resnet18", show_default=True)
@click.option("--batch", type=int, help="Images; 64 on a CPU, 128 and the teacher's 32 on a GPU by default.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure the peak memory too.")
@click.option("--peak-of", metavar="CANDIDATE", help="Only print the peak memory of one candidate, in MiB.")
def main(
    device: torch.device,
    rounds: int,
    name: str,
    batch: int | None,
    memory: bool,
    peak_of: str | None,
) -> None:
    """An AT-BSL training step, attack and update, and its peak memory."""
    if peak_of:
        steps = 1 if device.type == "cpu" else 10  # all in the same memory, and on a CPU each costs seconds
        print(PEAKS[device.type](one(make_task(name, batch or 64, steps, device), peak_of)) / 2**20)
        return
    cases, measured = network_cases(device, batch), set(SETTINGS)
    for images, steps, everyone, warm_up in cases:
        workload = make_task(name, images, steps, device)
        runs = candidates(workload) if everyone else {c: one(workload, c) for c in ("plain", FASTEST)}
        measured |= runs.keys()
        seconds = compare(runs, device, rounds, target=0.0, warm_up=warm_up)
        append("train_step", f"{name} {images}x3x32x32 {steps} steps", device, seconds)
    if memory:
        bench_memory(MemoryCase(name, max(case.images for case in cases), device), measured)


if __name__ == "__main__":
    main()
