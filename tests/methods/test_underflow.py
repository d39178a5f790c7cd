"""Every divergence of the package where target probabilities are exactly 0 in fp32: finite, and with a gradient."""

import pytest
import torch
from torch import nn

from ltat.data import Batch
from ltat.methods import find_method
from ltat.methods.objectives import INNER_LOSSES, inner_objective
from ltat.methods.teachers import TaughtMethod
from tests.methods.making import loss_of, make_method

GAP, CLASSES = 200.0, 5


class Sure(nn.Module):
    """Puts a gap of 200 between one class and the others: one class for dark images, another for bright ones."""

    num_classes = CLASSES

    def __init__(self, dark: int, bright: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(GAP * torch.eye(CLASSES)[[dark, bright]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows[(x.flatten(1)[:, 0] > 0.5).long()]


DARK, BRIGHT = torch.zeros(4, 1, 2, 2), torch.ones(4, 1, 2, 2)
BATCH = Batch(DARK, torch.arange(4), torch.arange(4))
COUNTS = torch.tensor([100, 50, 20, 8, 3])

CASES = {
    "trades": [],
    "mart": [],
    "robal": [],
    **{f"self-distill {form}": [f"kd.form={form}"] for form in ("igdm", "kl_adv", "kl_clean", "kl_adv+igdm")},
    "ard": ["kd.temp=1", "kd.share=0.5"],
    "rslad": [],
    "rslad unguarded": ["kd.guard=0"],
    "adaad": ["kd.share=0.5"],
    "ard+igdm": [],
    "rslad+igdm": [],
    "adaad+igdm": [],
}


@pytest.mark.parametrize("case", CASES)
def test_the_loss_and_its_gradient_are_finite(case: str):
    name = case.partition(" ")[0]
    teacher = Sure(2, 3) if issubclass(find_method(name), TaughtMethod) else None
    method = make_method(name, *CASES[case], counts=COUNTS, teacher=teacher)
    model = Sure(0, 1)
    loss = loss_of(method, model, BATCH, BRIGHT).loss
    loss.backward()
    assert loss.isfinite() and loss > 1
    assert model.rows.grad.isfinite().all() and model.rows.grad.abs().max() > 0


@pytest.mark.parametrize("name", [name for name in INNER_LOSSES if name.startswith("kl-")])
def test_the_attacks_objective_and_its_gradient_are_finite(name: str):
    model, teacher = Sure(0, 1), Sure(2, 3)
    logits = model(BRIGHT).detach().requires_grad_()
    climbed = inner_objective(name, model, BATCH, COUNTS.log(), teacher)(logits, BATCH.labels, BRIGHT).sum()
    climbed.backward()
    assert climbed.isfinite() and climbed > 1
    assert logits.grad.isfinite().all() and logits.grad.abs().max() > 0
