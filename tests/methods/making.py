"""A method from its name and settings, and what it does with a batch."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ltat.attacks import Objective
from ltat.config import load_config
from ltat.config.resolving import resolve
from ltat.data import Batch
from ltat.methods import LossTerms, Method, Step, find_method

SERVED: WeakKeyDictionary[Method, Tensor] = WeakKeyDictionary()
"""The class counts that a method of :func:`make_method` was built with."""


def make_method(name: str, *assignments: str, counts: torch.Tensor, teacher: nn.Module | None = None) -> Method:
    asked = load_config(lambda m: find_method(m).Config, settings={"method": name}, assignments=assignments)
    method = find_method(name)(resolve(asked, len(counts)), counts, teacher)
    SERVED[method] = counts
    return method


def step_of(method: Method, model: nn.Module, batch: Batch, x_adv: Tensor | None = None, epoch=1, epochs=1) -> Step:
    """A step by which every epoch serves the counts that ``method`` was built with."""
    return Step(model, batch, epoch, epochs, SERVED[method], batch.images if x_adv is None else x_adv)


def loss_of(method: Method, model: nn.Module, batch: Batch, x_adv: Tensor, epoch=1, epochs=1) -> LossTerms:
    return method.loss(step_of(method, model, batch, x_adv, epoch, epochs))


def attack_of(method: Method, model: nn.Module, batch: Batch, generator: torch.Generator, epoch=1, epochs=1) -> Tensor:
    step = Step(model, batch, epoch, epochs, SERVED[method], batch.images, generator)
    return method.attack(step)


def objective_of(method: Method, model: nn.Module, batch: Batch) -> Objective:
    return method.objective(step_of(method, model, batch))


def random_batch(*shape: int, classes: int) -> Batch:
    """Uniform noise of the given shape, with every class in turn."""
    images = torch.rand(*shape, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(len(images)) % classes, torch.arange(len(images)))


class Steep(nn.Module):
    """Logits of 0 and 200, chosen by the first pixel: probabilities of exactly 0 and 1 [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(200.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * torch.eye(5)[(x.flatten(1)[:, 0] > 0.5).long()]
