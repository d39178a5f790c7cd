"""TAET against its formulas, and the order of its forwards."""

import numpy as np
import pytest
import torch
from torch import nn

from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods.taet import harl
from ltat.models import build_model
from tests.methods.making import attack_of, loss_of, make_method

CLASSES = 5
COUNTS = torch.tensor([40, 20, 10, 5, 2])
STAGE_1, STAGE_2 = {"epoch": 1, "epochs": 100}, {"epoch": 41, "epochs": 100}


def make(*assignments: str):
    return make_method("taet", *assignments, counts=COUNTS)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("small", num_classes=CLASSES, in_channels=1).train()


@pytest.fixture
def batch() -> Batch:
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.tensor([0, 0, 0, 1, 1, 3, 0, 1]), torch.arange(8))  # classes 2 and 4 are absent


def harl64(logits: np.ndarray, labels: np.ndarray, absent: str) -> float:
    """0.1 (BCL + HDL + RCEL), class by class."""
    z = logits - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(labels)), labels]
    found = [losses[labels == c].mean() if (labels == c).any() else None for c in range(logits.shape[1])]
    present = [value for value in found if value is not None]
    per_class = present if absent == "ignore" else present + [0.0] * found.count(None)
    mean = sum(per_class) / len(per_class)
    deviation = sum((value - mean) ** 2 for value in per_class) / len(per_class)
    return 0.1 * mean + 0.1 * deviation + 0.1 * sum((value / sum(per_class)) ** 2 for value in per_class)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(CLASSES, 64, generator=torch.Generator().manual_seed(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("absent", ["zero", "ignore"])
def test_harl_and_its_gradient_are_those_of_the_formula(absent: str, batch: Batch):
    model, labels, pixels = Linear(), batch.labels.numpy(), batch.images.flatten(1).double().numpy()
    terms = loss_of(make(f"taet.absent={absent}"), model, batch, batch.images, **STAGE_2)
    terms.loss.backward()
    weight = model.weight.detach().double().numpy()
    assert terms.loss.item() == pytest.approx(harl64(pixels @ weight.T, labels, absent), rel=1e-5)
    expected = np.zeros_like(weight)
    for index in np.ndindex(*weight.shape):
        step = np.zeros_like(weight)
        step[index] = 1e-6
        ahead, behind = (harl64(pixels @ (weight + sign * step).T, labels, absent) for sign in (1, -1))
        expected[index] = (ahead - behind) / 2e-6
    np.testing.assert_allclose(model.weight.grad.numpy(), expected, rtol=2e-3, atol=2e-5)


def test_each_weight_belongs_to_its_term(batch: Batch):
    model = Linear()
    bcl, hdl, rcel = harl(
        nn.functional.cross_entropy(model(batch.images), batch.labels, reduction="none"), batch.labels, 5
    )
    method = make("taet.alpha=2", "taet.beta=3", "taet.gamma=5")
    loss = loss_of(method, model, batch, batch.images, **STAGE_2).loss
    assert loss.item() == pytest.approx((2 * bcl + 3 * hdl + 5 * rcel).item(), rel=1e-6)


def test_classes_with_equal_loss_deviate_by_nothing_and_share_evenly():
    _, hdl, rcel = harl(torch.full((6,), 1.7), torch.tensor([0, 0, 1, 2, 2, 2]), 3)
    assert hdl.item() == pytest.approx(0, abs=1e-12) and rcel.item() == pytest.approx(1 / 3, rel=1e-6)


def test_an_absent_class_lowers_the_mean_only_when_it_counts():
    losses, labels = torch.full((4,), 2.0), torch.tensor([0, 0, 1, 1])
    bcl, hdl, rcel = harl(losses, labels, 4, absent="zero")
    assert (bcl.item(), hdl.item()) == pytest.approx((1.0, 1.0))
    bcl, hdl, other = harl(losses, labels, 4, absent="ignore")
    assert (bcl.item(), hdl.item()) == pytest.approx((2.0, 0.0))
    assert rcel.item() == pytest.approx(other.item()) == pytest.approx(0.5)


def test_a_batch_fitted_perfectly_gives_finite_loss_and_gradient():
    losses = torch.zeros(4, requires_grad=True)
    sum(harl(losses, torch.tensor([0, 0, 1, 1]), 3)).backward()
    assert losses.grad.isfinite().all()


def test_stage_1_is_cross_entropy_on_the_clean_images_and_attacks_nothing(batch: Batch):
    model, method = network(), make()
    last_clean = {"epoch": 40, "epochs": 100}
    x = attack_of(method, model, batch, torch.Generator(), **last_clean)
    assert x is batch.images and model.bn1.num_batches_tracked.item() == 0
    expected = nn.functional.cross_entropy(network()(batch.images), batch.labels)
    assert loss_of(method, model, batch, x, **last_clean).loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert model.bn1.num_batches_tracked.item() == 1


def test_stage_2_begins_in_the_next_epoch_with_the_published_attack(batch: Batch, monkeypatch):
    seen = {}

    def spy(model, x, y, **settings):
        seen.update(settings)
        return x

    monkeypatch.setattr("ltat.methods.attacking.pgd", spy)
    attack_of(make(), network(), batch, torch.Generator(), **STAGE_2)
    wanted = {"steps": 10, "step_size": 0.003, "start": "gauss", "mode": "eval"}
    assert wanted.items() <= seen.items() and (seen["threat"].norm, seen["threat"].eps) == ("linf", 0.031)
    logits = torch.randn(8, CLASSES)
    expected = nn.functional.cross_entropy(logits, batch.labels, reduction="none")
    assert torch.equal(seen["objective"](logits, batch.labels, batch.images), expected)


@pytest.mark.parametrize(("extra", "updates"), [("true", 1), ("false", 0)])
def test_the_extra_forward_moves_batch_norm_before_the_attack(extra: str, updates: int, batch: Batch):
    model, plain = network(), network()
    method = make(f"taet.extra_forward={extra}", "attack.start=zero")
    x_adv = attack_of(method, model, batch, torch.Generator(), **STAGE_2)
    assert model.bn1.num_batches_tracked.item() == updates and model.training
    if updates:
        plain(batch.images)
    assert torch.equal(plain.bn1.running_mean, model.bn1.running_mean)
    same = attack_of(make("taet.extra_forward=false", "attack.start=zero"), plain, batch, torch.Generator(), **STAGE_2)
    assert torch.equal(x_adv, same)
    loss_of(method, model, batch, x_adv, **STAGE_2).loss.backward()
    assert model.bn1.num_batches_tracked.item() == updates + 1


@pytest.mark.parametrize(("clean", "epochs", "expected"), [(0.4, 100, 40), (0.29, 100, 29), (30, 100, 30), (0.4, 2, 0)])
def test_stage_1_is_a_share_or_a_number_of_epochs(clean: float, epochs: int, expected: int):
    assert make(f"taet.clean={clean}", f"train.epochs={epochs}").clean_epochs == expected


def test_the_mean_over_classes_makes_up_for_their_sizes():
    assert make().corrects_prior and not make("taet.alpha=0").corrects_prior


@pytest.mark.parametrize("setting", ["taet.clean=1", "taet.clean=100", "taet.absent=maybe", "taet.alpha=-1"])
def test_settings_that_cannot_be_followed_are_refused(setting: str):
    with pytest.raises(LtatError, match=setting.split("=", maxsplit=1)[0]):
        make(setting)
