"""An epoch of training, batches included, of AT-BSL and of the main method. Run: python -m bench.end_to_end.

On a CPU AT-BSL's training in `make demo` (its recipe on scikit-learn's digits), on a GPU an epoch of CIFAR-10-LT, ratio
50, ResNet-18: AT-BSL's, of 23 passes per image, and that of the main method's student, of 28. `plain` is the loop of
bench/plain_at_bsl.py with a DataLoader: on digits it reads in the main process, which is the quickest there, on a GPU
with four workers and pinned memory. `plain compile` is the same on torch.compile(network), on a CPU only, `ltat …`
ltat's trainer by its settings, with its own loader, `ltat demo` by the recipe as the demo runs it; on a GPU `ltat bf16`
alone, and with attack and update as a CUDA graph each. A call is an epoch. All epochs of the main method as published
are one row, which bench/paper_run.py writes: their training alone, without selection and evaluation.
"""

import click
import torch

from bench._harness import Run, append, bench_options, best_compiled, compare, tried
from bench._training import (
    COUNTS,
    FASTEST,
    GRAPH,
    GRAPH_SETTINGS,
    SETTINGS,
    Workload,
    make_trainer,
    plain_epochs,
    random_split,
)
from ltat.data import load_dataset

EPOCHS = 1000  # more than a bench runs, so that its stage never ends
TRIALS = 2  # epochs: each has enough steps to be captured, and the second is captured again


def digits(device: torch.device) -> Workload:
    """The baseline's training in `ltat demo`."""
    train = load_dataset("digits", imbalance_ratio=20.0).train
    return Workload(train, (f"train.epochs={EPOCHS}",), device, base="demo/digits-at-bsl")


def cifar(device: torch.device, *more: str) -> Workload:
    """A training on as many random images as CIFAR-10-LT has at ratio 50, of AT-BSL unless ``more`` names another."""
    return Workload(random_split(COUNTS), ("data.name=cifar10", f"train.epochs={EPOCHS}", *more), device)


def ltat_epochs(workload: Workload, settings: tuple[str, ...]) -> Run:
    """An epoch of ltat's trainer at every call."""
    return make_trainer(workload, settings).run_epoch


def cpu_candidates(workload: Workload) -> dict[str, Run]:
    """All candidates."""

    def compiled(compile) -> Run:
        return plain_epochs(workload, 0, compile)

    runs = {"plain": plain_epochs(workload, 0)}
    runs |= {name: ltat_epochs(workload, own) for name, own in ({"ltat demo": ()} | SETTINGS).items()}
    return runs | tried("plain compile", lambda: best_compiled(compiled, workload.device), TRIALS)


def gpu_candidates(workload: Workload) -> dict[str, Run]:
    """The plain loop and ltat's fastest two: an epoch takes seconds."""
    return {"plain": plain_epochs(workload, 4)} | student_candidates(workload)


def student_candidates(workload: Workload) -> dict[str, Run]:
    """ltat's fastest two alone: the main method has no plain loop."""
    runs = {FASTEST: ltat_epochs(workload, SETTINGS[FASTEST])}
    return runs | tried(GRAPH, lambda: ltat_epochs(workload, GRAPH_SETTINGS), TRIALS)


@click.command()
@bench_options(rounds=7)
def main(device: torch.device, rounds: int) -> None:
    """An epoch of training, batches included."""

    def measure(case: str, runs: dict[str, Run], warm_up: int) -> None:
        append("end_to_end", case, device, compare(runs, device, rounds, target=0.0, warm_up=warm_up))

    if device.type == "cpu":
        measure("digits, small, an epoch", cpu_candidates(digits(device)), warm_up=2)
    else:
        student = cifar(device, "method=self-distill")
        measure("CIFAR-10-LT, resnet18, an epoch of self-distill", student_candidates(student), warm_up=1)
        measure("CIFAR-10-LT, resnet18, an epoch", gpu_candidates(cifar(device)), warm_up=1)


if __name__ == "__main__":
    main()
