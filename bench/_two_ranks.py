"""What each of the two ranks of bench/distributed.py runs; rank 0 writes what was measured as a file.

The candidates take turns in every round. One of a single process runs on rank 0 while the other waits in the kernel.
"""

import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench._harness import Run
from bench._training import COUNTS, SETTINGS, Workload, make_trainer, random_split
from ltat.data import load_dataset
from ltat.engine.gradients import MeanGradients
from ltat.models import build_model
from ltat.ranks import ALONE, Ranks, ranks_of_torchrun

CPU = torch.device("cpu")
Values = dict[str, list[float]]  # of every round, by candidate
WARM_UP = 2


@dataclass(frozen=True)
class Candidate:
    """The parts of a step by name; ``threads`` of each process that takes part, ``alone`` for rank 0 without others."""

    parts: Mapping[str, Run]
    threads: int = 1
    alone: bool = False


def take_turns(candidates: Mapping[str, Candidate], ranks: Ranks, rounds: int) -> dict[str, Values]:
    """Seconds of the slower rank, by part and candidate."""
    seconds: dict[str, Values] = {}
    for turn in range(-WARM_UP, rounds):
        for name, candidate in candidates.items():
            for part, run in candidate.parts.items():
                passed = timed(run, candidate, ranks)
                if turn >= 0:
                    seconds.setdefault(part, {}).setdefault(name, []).append(passed)
    return seconds


def timed(run: Run, candidate: Candidate, ranks: Ranks) -> float:
    """Seconds of a call, on the rank that takes longest."""
    torch.set_num_threads(candidate.threads)
    ranks.meet()
    begin = time.perf_counter()
    if ranks.leads or not candidate.alone:
        run()
    passed = time.perf_counter() - begin
    torch.set_num_threads(1)
    return float(ranks.stacked(torch.tensor([passed])).max())


class StepParts:
    """Attack and update of the trainer's first batch, again and again."""

    def __init__(self, workload: Workload, ranks: Ranks, *more: str) -> None:
        self.trainer = make_trainer(workload, (*SETTINGS["ltat fp32 folded"], *more), ranks)
        self.trainer.network.train()
        batch = next(iter(self.trainer.stage.loader.epoch(1)))
        self.step = self.trainer.step(batch, 1, 0, self.trainer.class_counts(1))
        self.x_adv = batch.images

    def attack(self) -> None:
        self.x_adv = self.trainer.stage.method.attack(self.step)

    def update(self) -> None:
        self.trainer.update(replace(self.step.for_loss(), x_adv=self.x_adv))

    def candidate(self, threads: int = 1, alone: bool = False) -> Candidate:
        """The parts, as they are timed."""
        return Candidate({"attack": self.attack, "update": self.update}, threads, alone)


def scaling(
    title: str, workload: Callable[[int], Workload], batch: int, ranks: Ranks, rounds: int
) -> dict[str, Values]:
    """Images per second of a step and its parts by case: a batch shared by the ranks, and one for each of them."""
    half = f"1 rank, {batch // 2} images"
    whole, own = workload(batch), workload(batch // ranks.size)
    candidates = {
        "1 rank, 1 thread": StepParts(whole, ALONE).candidate(alone=True),
        "1 rank, 2 threads": StepParts(whole, ALONE).candidate(threads=2, alone=True),
        "2 ranks": StepParts(whole, ranks).candidate(),
        "2 ranks, sync_bn=false": StepParts(whole, ranks, "train.sync_bn=false").candidate(),
        half: StepParts(own, ALONE).candidate(alone=True),
    }
    seconds = take_turns(candidates, ranks, rounds)
    both = zip(seconds["attack"].items(), seconds["update"].values(), strict=True)
    seconds["step"] = {name: [a + u for a, u in zip(attack, update, strict=True)] for (name, attack), update in both}
    cases: dict[str, Values] = {}
    for part, values in seconds.items():
        speeds = {name: [batch / each for each in values[name]] for name in candidates}
        speeds[half] = [each / ranks.size for each in speeds[half]]
        weak = {half: speeds.pop(half), f"2 ranks, {batch} images": speeds["2 ranks"]}
        cases |= {f"{title}, {batch} images, {part}": speeds, f"{title}, {batch // 2} images a rank, {part}": weak}
    return cases


class Update:
    """An update of a network whose gradients are averaged in one way or another."""

    def __init__(self, model: nn.Module, batch: int, size: int, ranks: Ranks) -> None:
        self.model, self.network, self.ranks = model, model, ranks
        self.share = ranks.share(batch)
        self.images, self.labels = torch.rand(len(self.share), 3, size, size), torch.randint(10, (batch,))
        self.optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)
        self.finish: Callable[[], None] = lambda: None

    def run(self) -> None:
        """Forward, loss, backward and step; ``finish`` waits for the gradients of the other ranks."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.network(self.images)).backward()
        self.finish()
        self.optimizer.step()

    def loss(self, logits: Tensor) -> Tensor:
        """Of the whole batch, as ltat has it."""
        return F.cross_entropy(self.ranks.joined(logits, self.share), self.labels)


class LonelyUpdate(Update):
    """Of this rank's images, without a word to the other."""

    def loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.labels[self.share.rows])


def updates(name: str, batch: int, size: int, ranks: Ranks) -> dict[str, Update]:
    """Every way to average the gradients."""

    def new(kind: type[Update] = Update) -> Update:
        torch.manual_seed(0)
        return kind(build_model(name, num_classes=10), batch, size, ranks)

    made = {"no communication": new(LonelyUpdate), "after backward": new()}
    after = made["after backward"]
    after.finish = lambda: ranks.mean_([p.grad for p in after.model.parameters() if p.grad is not None])
    for title, mib in (("ltat", 8), ("ltat, 2 MiB", 2), ("ltat, 25 MiB", 25)):
        made[title] = new()
        made[title].finish = MeanGradients(made[title].model, ranks, mib * 2**20).wait
    made["DDP"] = new()
    made["DDP"].network = wrapped(made["DDP"].model)
    return made


def wrapped(model: nn.Module) -> nn.Module:
    """torch's wrapper, which sends gradients alone."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # the option has another name since 2.14
        return DistributedDataParallel(model, broadcast_buffers=False)


def gradients(name: str, batch: int, size: int, ranks: Ranks, rounds: int) -> dict[str, Values]:
    """Microseconds of an update by each way, and what it takes longer than without communication."""
    made = updates(name, batch, size, ranks)
    update = take_turns({title: Candidate({"update": each.run}) for title, each in made.items()}, ranks, rounds)[
        "update"
    ]
    least = update["no communication"]
    micro = {title: [1e6 * each for each in values] for title, values in update.items()}
    exposed = {title: [1e6 * (a - b) for a, b in zip(values, least, strict=True)] for title, values in update.items()}
    del exposed["no communication"]
    return {f"{name}, {batch} images, update": micro, f"{name}, {batch} images, exposed": exposed}


def digits(batch: int) -> Workload:
    """The demo's data and network."""
    train = load_dataset("digits", imbalance_ratio=20.0).train
    return Workload(train, (f"train.batch_size={batch}",), CPU, base="demo/digits-at-bsl")


def cifar(batch: int) -> Workload:
    """ResNet-18 on random images."""
    settings = (f"train.batch_size={batch}", "attack.steps=2", "data.name=cifar10")
    return Workload(random_split(COUNTS), settings, CPU)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--rounds", type=int, required=True)
@click.option("--quick", is_flag=True)
def main(file: Path, rounds: int, quick: bool) -> None:
    """Measure on every rank of torchrun."""
    with ranks_of_torchrun() as ranks:
        speeds = scaling("digits", digits, 64, ranks, rounds)
        if not quick:
            speeds |= scaling("cifar", cifar, 16, ranks, rounds)
        times = gradients("small", 8, 8, ranks, rounds) if quick else gradients("resnet18", 16, 32, ranks, rounds)
        if ranks.leads:
            file.write_text(json.dumps({"images/s": speeds, "us": times}))


if __name__ == "__main__":
    main()
