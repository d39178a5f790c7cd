"""An epoch of AT-BSL training, batches included. Run: python -m bench.end_to_end.

On a CPU the training of `make demo` (its recipe on scikit-learn's digits), on a GPU a student's epoch of CIFAR-10-LT,
ratio 50, ResNet-18. `plain` is the loop of bench/plain_at_bsl.py with a DataLoader: on digits it reads in the main
process, which is the quickest there, on a GPU with four workers and pinned memory. `ltat …` is ltat's trainer by its
settings, with its own loader, `ltat demo` by the recipe as the demo runs it. A call is an epoch.
"""

import click
import torch

from bench._harness import Run, append, bench_options, compare, tried
from bench._training import (
    COUNTS,
    GRAPH,
    GRAPH_SETTINGS,
    SETTINGS,
    Task,
    make_trainer,
    plain_epochs,
    random_split,
)
from ltat.data import load_dataset

EPOCHS = 1000  # more than will be asked for: a stage of a bench never reaches its end


def digits(device: torch.device) -> Task:
    """The baseline's training in `ltat demo`."""
    train = load_dataset("digits", imbalance_ratio=20.0).train
    return Task(train, (f"train.epochs={EPOCHS}",), device, base="demo/digits-at-bsl")


def cifar(device: torch.device) -> Task:
    """A student's training on as many random images as CIFAR-10-LT has at ratio 50."""
    return Task(random_split(COUNTS), ("data.name=cifar10", f"train.epochs={EPOCHS}"), device)


def ltat_epochs(task: Task, settings: tuple[str, ...]) -> Run:
    """An epoch of ltat's trainer at every call."""
    return make_trainer(task, settings).run_epoch


@click.command()
@bench_options(rounds=7)
def main(device: torch.device, rounds: int) -> None:
    """An epoch of training, batches included."""
    on_cpu = device.type == "cpu"
    task = digits(device) if on_cpu else cifar(device)
    runs = {"plain": plain_epochs(task, 0 if on_cpu else 4)}
    settings = ({"ltat demo": ()} if on_cpu else {}) | SETTINGS
    runs |= {name: ltat_epochs(task, own) for name, own in settings.items()}
    if device.type == "cuda":
        runs |= tried(GRAPH, lambda: ltat_epochs(task, GRAPH_SETTINGS))
    case = "digits, small, an epoch" if on_cpu else "CIFAR-10-LT, resnet18, an epoch"
    append("end_to_end", case, device, compare(runs, device, rounds, target=0.0, warm_up=2 if on_cpu else 1))


if __name__ == "__main__":
    main()
