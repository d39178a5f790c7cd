"""Training on several ranks: how it scales, how gradients travel, what is sent. Run: python -m bench.distributed.

Two ranks over gloo share the cores of this machine, so a rank has half of what one process has. The AT-BSL step, by its
attack and its update, of one process on one thread and on two, of two ranks on one thread each (the same batch: strong
scaling; as many images a rank: weak), and of two ranks whose batch norm sees its own share (`sync_bn=false`). `digits`
is the small network on the images of the demo with 10 attack steps, `cifar` ResNet-18 on random images with 2.

*update* is forward, loss of the whole batch, backward, and the optimiser's step on ResNet-18, with every rank's batch
norm its own: `no communication` does without the other rank; `after backward` sends all gradients as one message then;
`ltat` sends buckets while backward runs, of 8 MiB if not named otherwise; `DDP` is torch's wrapper around the network.
*exposed* is what each takes longer than `no communication` in the same round.

*sent* is what rank 0 of 8 hands over in the update of a batch of 16 images, by kind, as messages and as bytes; it is
counted, not sent. An all-reduce over a ring of N ranks moves 2 (N - 1) / N times that through every link. The bytes of
the logits grow with the batch, nothing else does. On a GPU torch's SyncBatchNorm sends the same for batch norm. Times
of two ranks that share their cores with other programs say nothing: measure them on a quiet machine.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import torch

from bench._harness import ROOT, Spread, bench_options, write_rows
from bench._volume import sent_in_update

RANKS = 2
CPU = torch.device("cpu")


def measured(rounds: int, quick: bool) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Values of every round by unit, case and candidate, from one launch of two ranks."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "measured.json"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", "-m", "bench._two_ranks"]
        command = [sys.executable, *launch, str(file), "--rounds", str(rounds), *(["--quick"] if quick else [])]
        subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
        found: dict[str, dict[str, dict[str, list[float]]]] = json.loads(file.read_text())
        return found


def write_volume(model: str, sync_bn: bool) -> None:
    """Rows of what a rank sends in an update."""
    title = f"{model}, sent in an update, sync_bn={str(sync_bn).lower()}"
    sent = sent_in_update(model, sync_bn)
    messages = {kind: Spread.of([len(sizes)]) for kind, sizes in sent.items()}
    kib = {kind: Spread.of([sum(sizes) / 2**10]) for kind, sizes in sent.items()}
    write_rows("distributed", f"{title}: messages", CPU, "messages", messages)
    write_rows("distributed", f"{title}: bytes", CPU, "KiB", kib)


@click.command()
@bench_options(threads=RANKS, rounds=7)
@click.option("--quick", is_flag=True, help="The small network alone, to see that everything runs.")
def main(device: torch.device, rounds: int, quick: bool) -> None:
    """Training on several ranks: how it scales, how gradients travel, what is sent."""
    del device  # two ranks cannot share one GPU
    for unit, cases in measured(rounds, quick).items():
        for case, values in cases.items():
            write_rows("distributed", case, CPU, unit, {name: Spread.of(each) for name, each in values.items()})
    for model in ("small",) if quick else ("resnet18", "wrn34-10"):
        for sync_bn in (True, False):
            write_volume(model, sync_bn)


if __name__ == "__main__":
    main()
