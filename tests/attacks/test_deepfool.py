"""DeepFool: a step that misses the nearest boundary, an image that stops too late, a success outside the radius."""

import numpy as np
import pytest
import torch
from torch import nn

from ltat import evaluate
from ltat.attacks import ThreatModel
from ltat.attacks.deepfool import OVERSHOOT, deepfool
from ltat.data import Split

WIDE = (-100.0, 100.0)
DUAL = {"l2": 2, "linf": 1}
PRIMAL = {"l2": 2, "linf": torch.inf}


def linear(classes: int = 4, pixels: int = 12) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes)).double()


def images(number: int = 20) -> torch.Tensor:
    return torch.randn(number, 3, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def closed_form(model: nn.Module, x: torch.Tensor, y: torch.Tensor, norm: str) -> torch.Tensor:
    """The distance of a linear network's images from the nearest other class."""
    weights, logits, rows = model[1].weight, model(x), torch.arange(len(x))
    apart = (weights[None] - weights[y][:, None]).norm(p=DUAL[norm], dim=2)  # [B, C]
    distances = (logits - logits[rows, y][:, None]).abs() / apart
    distances[rows, y] = torch.inf
    return distances.amin(1).detach()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_on_a_linear_network_the_perturbation_is_the_smallest_there_is(norm):
    model, x = linear(), images()
    y = model(x).argmax(1)
    x_adv = deepfool(model, x, y, norm=norm, box=WIDE)
    moved = (x_adv - x).flatten(1).norm(p=PRIMAL[norm], dim=1)
    torch.testing.assert_close(moved, (1 + OVERSHOOT) * closed_form(model, x, y, norm), rtol=1e-10, atol=0)
    assert bool((model(x_adv).argmax(1) != y).all())
    before = deepfool(model, x, y, norm=norm, box=WIDE, steps=1, overshoot=-1e-6)  # just before the boundary
    assert bool((model(before).argmax(1) == y).all())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_curved_network_is_fooled_nearer_than_by_one_step_of_its_linear_model(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 64), nn.SiLU(), nn.Linear(64, 5)).double()
    x = images(40)
    y = model(x).argmax(1)
    one, many = (deepfool(model, x, y, norm=norm, box=WIDE, steps=steps) for steps in (1, 50))
    fooled = [int((model(x_adv).argmax(1) != y).sum()) for x_adv in (one, many)]
    assert fooled[0] < fooled[1] == len(x)


def test_images_do_not_disturb_each_other_and_those_that_err_stay():
    model, x = linear(), images()
    y = model(x).argmax(1)
    y[3] = (y[3] + 1) % 4
    together = deepfool(model, x, y, box=WIDE)
    alone = torch.cat([deepfool(model, x[i : i + 1], y[i : i + 1], box=WIDE) for i in range(len(x))])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    assert torch.equal(together[3], x[3])


def test_without_a_gradient_images_stay_and_are_numbers():
    model = linear()
    with torch.no_grad():
        model[1].weight.zero_()
    x = images(2)
    assert torch.equal(deepfool(model, x, model(x).argmax(1), box=WIDE), x)


def test_the_box_is_kept_and_the_model_comes_back():
    model, x = nn.Sequential(linear(), nn.Dropout()).train(), images().sigmoid()
    y = model.eval()(x).argmax(1)
    model.train()
    with torch.inference_mode():
        x_adv = deepfool(model, x, y)
    assert float(x_adv.min()) >= 0 and float(x_adv.max()) <= 1
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_success_counts_within_the_radius_alone(norm):
    model = linear().float()
    pixels = np.random.default_rng(0).integers(100, 156, (40, 2, 2, 3), dtype=np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    y = model(x).argmax(1)
    split = Split(pixels, y.numpy(), 4, np.arange(40))
    distances = closed_form(model, x, y, norm)
    near = distances.sort().values[:16]
    eps = float(near[7:9].mean())  # between two images, and far from the box
    report = evaluate(model, split, attacks=["clean", "deepfool"], threat=ThreatModel(norm, eps)).to_json()
    assert report["clean"]["overall"] == 100
    assert report["deepfool"]["overall"] == pytest.approx(100 * (40 - 8) / 40)
    assert report["deepfool"]["attack"]["without_radius"] == 0
    assert report["deepfool"]["attack"]["median_distance"] == pytest.approx(
        (1 + OVERSHOOT) * float(distances.sort().values[19:21].mean()), rel=1e-3
    )
