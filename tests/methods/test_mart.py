"""MART: its attack, its loss and its forwards."""

import numpy as np
import pytest
import torch

from ltat.attacks import cross_entropy
from ltat.errors import LtatError
from ltat.methods import attacking
from tests.methods.making import Steep, attack_of, loss_of, make_method
from tests.methods.test_attack_and_modes import buffers, network, same
from tests.methods.test_losses import Linear, gradient64, log_softmax, logits64

COUNTS = torch.tensor([30, 20, 10, 5])
PUBLISHED = {"beta": 5.0, "margin_guard": 1e-4, "log_guard": 1e-12, "weight_guard": 1e-7}


def make(*assignments: str):
    return make_method("mart", *assignments, counts=COUNTS)


def mart64(z: np.ndarray, z_adv: np.ndarray, labels: np.ndarray, beta, margin_guard, log_guard, weight_guard) -> float:
    """The formula, one image after another."""
    total = 0.0
    for p, q, y in zip(np.exp(log_softmax(z)), np.exp(log_softmax(z_adv)), labels, strict=True):
        rival = max(q[k] for k in range(len(q)) if k != y)
        total += -np.log(q[y]) - np.log(1 + margin_guard - rival + log_guard)
        divergence = sum(p[k] * (np.log(p[k]) - np.log(q[k] + log_guard)) for k in range(len(p)))
        total += beta * divergence * (1 + weight_guard - p[y])
    return total / len(labels)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.7},
        {"margin_guard": 0.5},  # guards large enough to be seen
        {"log_guard": 0.1},
        {"weight_guard": 0.5},
    ],
)
def test_the_loss_and_its_gradient_through_every_factor_are_those_of_the_formula(settings, small):
    student, x_adv = Linear(2), small.images**2
    method = make(*(f"mart.{name}={value}" for name, value in settings.items()))
    terms = loss_of(method, student, small, x_adv)
    terms.loss.backward()
    bias = student.bias.detach().double().numpy()

    def loss64(weight: np.ndarray) -> float:
        z, z_adv = logits64(weight, bias, small.images), logits64(weight, bias, x_adv)
        return mart64(z, z_adv, small.labels.numpy(), **{**PUBLISHED, **settings})

    weight = student.weight.detach().double().numpy()
    assert terms.loss.item() == pytest.approx(loss64(weight), rel=1e-5)
    np.testing.assert_allclose(student.weight.grad.numpy(), gradient64(loss64, weight), rtol=2e-3, atol=2e-5)
    assert torch.equal(terms.logits, student(x_adv).detach())


def test_certain_and_wrong_predictions_leave_loss_and_gradient_finite(small):
    """Probabilities of exactly 0 and 1 on the clean and on the adversarial image, for right and wrong classes."""
    model = Steep()
    terms = loss_of(make(), model, small, 1 - small.images)
    terms.loss.backward()
    assert terms.loss.isfinite() and model.scale.grad.isfinite() and model.scale.grad != 0


def test_batch_norm_sees_the_clean_images_first_and_the_adversarial_ones_last(batch):
    model, twin = network(0), network(0)
    x_adv = (batch.images + 0.2).clamp(0, 1)
    loss_of(make(), model, batch, x_adv)
    twin(batch.images)
    twin(x_adv)
    assert model.bn1.num_batches_tracked.item() == 2
    assert same(buffers(twin), model)


def test_the_attack_is_the_common_protocols_on_cross_entropy(batch, monkeypatch):
    seen, model = {}, network(0)
    before = buffers(model)
    x_adv = attack_of(make(), model, batch, torch.Generator().manual_seed(0))
    assert same(before, model) and model.training and not torch.equal(x_adv, batch.images)
    monkeypatch.setattr(attacking, "pgd", lambda model, x, y, **settings: seen.update(settings) or x)
    attack_of(make(), model, batch, torch.Generator())
    assert seen["objective"] is cross_entropy
    assert (seen["steps"], seen["step_size"], seen["start"], seen["mode"]) == (10, 2 / 255, "gauss", "eval")
    assert (seen["threat"].norm, seen["threat"].eps) == ("linf", 8 / 255)


@pytest.mark.parametrize("name", ["mart.beta", "mart.log_guard", "mart.margin_guard", "mart.weight_guard", "trades"])
def test_settings_that_cannot_work_are_refused_in_one_sentence(name: str):
    with pytest.raises(LtatError) as error:
        make(f"{name}=-1")
    assert name in str(error.value) and "\n" not in str(error.value)
