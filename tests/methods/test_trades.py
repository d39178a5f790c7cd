"""TRADES: its attack, its loss and its forwards."""

import numpy as np
import pytest
import torch
from torch import nn

from ltat.attacks import STARTS
from ltat.errors import LtatError
from ltat.methods import attacking
from tests.methods.making import Steep, attack_of, loss_of, make_method
from tests.methods.test_attack_and_modes import buffers, network, same
from tests.methods.test_losses import Linear, cross_entropy64, gradient64, kl_batchmean, logits64

COUNTS = torch.tensor([30, 20, 10, 5])


def make(*assignments: str):
    return make_method("trades", *assignments, counts=COUNTS)


@pytest.mark.parametrize("beta", [6.0, 1.5])
@pytest.mark.parametrize("third", ["false", "true"])
def test_the_loss_and_its_gradient_through_both_predictions_are_those_of_the_formula(beta, third, small):
    student = Linear(2)
    x_adv = small.images**2
    method = make(f"trades.beta={beta}", f"trades.third_forward={third}")
    terms = loss_of(method, student, small, x_adv)
    terms.loss.backward()
    bias = student.bias.detach().double().numpy()

    def loss64(weight: np.ndarray) -> float:
        z, z_adv = logits64(weight, bias, small.images), logits64(weight, bias, x_adv)
        return cross_entropy64(z, small.labels) + beta * kl_batchmean(z, z_adv)

    weight = student.weight.detach().double().numpy()
    assert terms.loss.item() == pytest.approx(loss64(weight), rel=1e-5)
    np.testing.assert_allclose(student.weight.grad.numpy(), gradient64(loss64, weight), rtol=2e-3, atol=2e-5)
    assert torch.equal(terms.logits, student(x_adv).detach())


def test_beta_left_out_is_six():
    assert make().config.trades.beta == 6


def test_a_probability_that_underflows_leaves_loss_and_gradient_finite(small):
    model = Steep()
    terms = loss_of(make(), model, small, 1 - small.images)
    terms.loss.backward()
    assert terms.logs["kl"].item() == pytest.approx(200, rel=1e-3)
    assert model.scale.grad.isfinite() and model.scale.grad != 0


@pytest.mark.parametrize(("third", "updates"), [("false", 2), ("true", 3)])
def test_batch_norm_sees_clean_adversarial_and_where_asked_clean_images_again(third, updates, batch):
    model, twin = network(0), network(0)
    x_adv = (batch.images + 0.2).clamp(0, 1)
    loss_of(make(f"trades.third_forward={third}"), model, batch, x_adv)
    for images in (batch.images, x_adv, batch.images)[:updates]:
        twin(images)
    assert model.bn1.num_batches_tracked.item() == updates
    assert same(buffers(twin), model)


def test_the_attack_ascends_the_divergence_from_the_evaluation_modes_clean_prediction(batch):
    model = network(0)
    model(torch.rand(6, 1, 8, 8))  # running statistics that differ from the batch's
    before = buffers(model)
    one_step = make("attack.steps=1", "attack.step_size=0.01", "attack.eps=0.05")
    x_adv = attack_of(one_step, model, batch, torch.Generator().manual_seed(3))
    assert same(before, model) and model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())

    double = model.double().eval()
    start = STARTS["gauss"](batch.images, one_step.threat, torch.Generator().manual_seed(3))
    x = start.double().requires_grad_()
    p = double(batch.images.double()).softmax(1).detach()
    nn.functional.kl_div(double(x).log_softmax(1), p, reduction="sum").backward()
    inside = (start > 0.02) & (start < 0.98)
    agree = (x_adv - start).sign() == x.grad.sign()
    assert agree[inside].float().mean() > 0.97  # a sign may flip where the gradient is rounding noise


def test_the_attack_is_the_one_of_the_common_protocol(batch, monkeypatch):
    seen = {}
    monkeypatch.setattr(attacking, "pgd", lambda model, x, y, **settings: seen.update(settings) or x)
    attack_of(make(), network(0), batch, torch.Generator())
    assert (seen["steps"], seen["step_size"], seen["start"], seen["mode"]) == (10, 2 / 255, "gauss", "eval")
    assert (seen["threat"].norm, seen["threat"].eps) == ("linf", 8 / 255)


def test_the_attack_keeps_its_objective_when_another_of_its_settings_changes():
    assert make("attack.steps=20").config.attack.loss == "kl-self"


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("attack.start=zero", "attack.start=zero; use attack.start=gauss"),
        ("trades.beta=-1", "trades.beta=-1"),
        ("trades.third_forward=maybe", "trades.third_forward"),
        ("bsl.tau=1", "bsl"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(setting: str, sentence: str):
    with pytest.raises(LtatError) as error:
        make(setting)
    assert sentence in str(error.value) and "\n" not in str(error.value)
