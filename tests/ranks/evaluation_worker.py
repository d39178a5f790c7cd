"""What each rank of a launch evaluates; each of them writes what it found as ``RANKS-RANK.pt``."""

import sys
from pathlib import Path

import torch

from ltat.ranks import ranks_of_torchrun
from tests.ranks.evaluations import everything, trained

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with ranks_of_torchrun() as ranks:
        found = everything(ranks, folder)
        if ranks.size == 2:
            found["trained"] = trained(ranks, folder / "run")
        torch.save(found, folder / f"{ranks.size}-{ranks.rank}.pt")
