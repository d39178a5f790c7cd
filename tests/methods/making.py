"""A method from its name and settings."""

import torch
from torch import nn

from ltat.config import load_config
from ltat.data import Batch
from ltat.methods import Method, find_method


def make_method(name: str, *assignments: str, counts: torch.Tensor, teacher: nn.Module | None = None) -> Method:
    config = load_config(lambda m: find_method(m).Config, settings={"method": name}, assignments=assignments)
    return find_method(name)(config, counts, teacher)


def random_batch(*shape: int, classes: int) -> Batch:
    """Uniform noise of the given shape, with every class in turn."""
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(len(images)) % classes, torch.arange(len(images)))
