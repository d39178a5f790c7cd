"""An AT-BSL training step, attack and update, and its peak memory. Run: python -m bench.train_step.

`plain` is the step of bench/plain_at_bsl.py, `compile` the same on torch.compile(network), `plain graph` its replay as
one CUDA graph; `ltat …` is ltat's trainer by its settings, `ltat bf16 graph` with attack and update as one each. On a
CPU, where a step costs seconds, everyone takes a quarter of the batch and two attack steps, warmed up by one call, and
only `plain` and ltat's fastest the whole. Peak memory is what a step adds to the process (CPU, a fresh process each, as
Linux tells it) or to what is allocated on the device (CUDA).
"""

import re
import subprocess
import sys
from pathlib import Path

import click
import torch

from bench._harness import (
    ROOT,
    Run,
    Spread,
    append,
    bench_options,
    best_compiled,
    compare,
    graphed,
    network_cases,
    tried,
    write_rows,
)
from bench._training import (
    COUNTS,
    GRAPH,
    GRAPH_SETTINGS,
    SETTINGS,
    Plain,
    Task,
    make_plain,
    make_trainer,
    random_split,
    settings_for,
)
from bench.attack import FASTEST, NETWORK_MODES
from bench.plain_at_bsl import train_step
from ltat.data import Batch
from ltat.methods import Progress


def make_batch(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    batch = task.recipe.batch_size
    labels = torch.as_tensor(task.train.labels, device=task.device)
    return torch.rand(batch, 3, 32, 32, device=task.device), labels[torch.randint(len(labels), (batch,))]


def plain_run(plain: Plain, task: Task) -> Run:
    x, y = make_batch(task)
    return lambda: train_step(plain.network, plain.optimizer, x, y, plain.log_prior, plain.recipe)


def ltat_run(task: Task, settings: tuple[str, ...]) -> Run:
    trainer = make_trainer(task, settings)
    trainer.network.train()
    x, y = make_batch(task)
    batch = Batch(x.contiguous(memory_format=torch.channels_last), y, torch.arange(len(y), device=y.device))
    progress, steps = Progress(1, 100), iter(range(1_000_000))
    return lambda: trainer.train_step(batch, progress, next(steps))


def candidates(task: Task) -> dict[str, Run]:
    """Everyone."""

    def compiled(compile) -> Run:
        return plain_run(make_plain(task, compile), task)

    runs = {"plain": plain_run(make_plain(task), task)}
    runs |= {name: ltat_run(task, settings) for name, settings in settings_for(task.device).items()}
    runs |= tried("compile", lambda: best_compiled(compiled, task.device, NETWORK_MODES))
    if task.device.type == "cuda":
        runs |= tried(GRAPH, lambda: ltat_run(task, GRAPH_SETTINGS))
        runs |= tried("plain graph", lambda: graphed(plain_run(make_plain(task), task)))
    return runs


def one(task: Task, candidate: str) -> Run:
    return plain_run(make_plain(task), task) if candidate == "plain" else ltat_run(task, SETTINGS[candidate])


def peak_mib(task: Task, candidate: str) -> float:
    """MiB that two steps need at most above what stood before the first."""
    run = one(task, candidate)
    reset, before, peak = DEVICE_MEMORY if task.device.type == "cuda" else PROCESS_MEMORY
    reset()
    standing = before()
    for _ in range(2):
        run()
    return (peak() - standing) / 2**20


def process_memory(field: str) -> int:
    """Bytes of this process, as Linux tells them: VmRSS now, VmHWM at most."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


# Forget the peak; what stands now; the peak since.
PROCESS_MEMORY = (
    lambda: Path("/proc/self/clear_refs").write_text("5"),
    lambda: process_memory("VmRSS"),
    lambda: process_memory("VmHWM"),
)
DEVICE_MEMORY = (torch.cuda.reset_peak_memory_stats, torch.cuda.memory_allocated, torch.cuda.max_memory_allocated)


def bench_memory(case: str, task: Task, name: str, runs: int) -> None:
    """Rows of the peaks; on a CPU, where memory once freed is not given back, each in a process of its own."""
    if task.device.type == "cuda":
        return write_peaks(case, task, {c: Spread.of([peak_mib(task, c)]) for c in ("plain", *SETTINGS)})
    peaks = {}
    for candidate in ("plain", *SETTINGS):
        command = [sys.executable, "-m", "bench.train_step", "--peak-of", candidate, "--device", str(task.device)]
        command += ["--threads", str(torch.get_num_threads()), "--model", name, "--batch", str(task.recipe.batch_size)]
        told = [subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(runs)]
        peaks[candidate] = Spread.of([float(run.stdout.split()[-1]) for run in told])
    write_peaks(case, task, peaks)


def write_peaks(case: str, task: Task, peaks: dict[str, Spread]) -> None:
    write_rows("train_step", f"{case} peak memory", task.device, "MiB", peaks)


def make_task(name: str, batch: int, steps: int, device: torch.device) -> Task:
    settings = (f"model.name={name}", f"train.batch_size={batch}", f"attack.steps={steps}")
    return Task(random_split(COUNTS), (*settings, "data.name=cifar10"), device)


@click.command()
@bench_options(rounds=3)
@click.option("--model", "name", default="resnet18", show_default=True)
@click.option("--batch", type=int, help="Images; 64 on a CPU, 128 and the teacher's 32 on a GPU by default.")
@click.option("--peak-of", metavar="CANDIDATE", help="Only print the peak memory of one candidate, in MiB.")
def main(
    device: torch.device,
    rounds: int,
    name: str,
    batch: int | None,
    peak_of: str | None,
) -> None:
    """An AT-BSL training step, attack and update, and its peak memory."""
    if peak_of:
        print(peak_mib(make_task(name, batch or 64, 1, device), peak_of))
        return
    for images, steps, everyone, warm_up in network_cases(device, batch):
        task = make_task(name, images, steps, device)
        runs = candidates(task) if everyone else {c: one(task, c) for c in ("plain", FASTEST)}
        seconds = compare(runs, device, rounds, target=0.0, warm_up=warm_up)
        append("train_step", f"{name} {images}x3x32x32 {steps} steps", device, seconds)
    images = max(case.images for case in network_cases(device, batch))
    bench_memory(f"{name} {images}x3x32x32", make_task(name, images, 1, device), name, 1)


if __name__ == "__main__":
    main()
