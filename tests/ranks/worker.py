"""What each rank runs: the cases of the command line, whose ends rank 0 writes as a file."""

import sys

import torch

from ltat.ranks import ranks_of_torchrun
from tests.ranks.cases import trained

if __name__ == "__main__":
    file, *names = sys.argv[1:]
    with ranks_of_torchrun() as ranks:
        ends = {name: trained(name, ranks) for name in names}
        if ranks.leads:
            torch.save(ends, file)
