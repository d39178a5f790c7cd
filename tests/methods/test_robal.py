"""RoBal against its formulas, and the network it leaves behind."""

import numpy as np
import pytest
import torch
from torch import nn

from ltat.config import load_config
from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods import find_method
from ltat.methods.robal import log_share
from ltat.models import Classifier, CosineClassifier, build_model
from ltat.training.schedule import learning_rate
from tests.methods.making import attack_of, loss_of, make_method, objective_of

CLASSES, WIDTH = 5, 6
COUNTS = torch.tensor([40, 20, 10, 5, 2])
PROGRESS = {"epoch": 1, "epochs": 2}
ADJUSTED = ("robal.tau_p=1.7", "robal.scale_out=10", "robal.gamma_w=1/16")


def make(*assignments: str):
    return make_method("robal", *assignments, counts=COUNTS)


class TwoLayers(Classifier):
    """h = V x under the head; small enough to differentiate by hand."""

    def __init__(self) -> None:
        super().__init__(CLASSES, 1, None)
        generator = torch.Generator().manual_seed(2)
        self.body = nn.Parameter(torch.randn(WIDTH, 16, generator=generator))
        self.linear = nn.Linear(WIDTH, CLASSES)

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.body.T


def prepared(method) -> nn.Module:
    torch.manual_seed(3)
    return method.prepare_model(TwoLayers())


@pytest.fixture
def batch() -> Batch:
    images = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.tensor([0, 4, 1, 3, 4, 0, 2]), torch.arange(7))


@pytest.fixture
def x_adv(batch: Batch) -> torch.Tensor:
    # Far from the clean images: near them the divergence is the same in both directions.
    return 1 - batch.images**2


def cosines64(body: np.ndarray, weight: np.ndarray, images: torch.Tensor, gamma: float) -> np.ndarray:
    h = images.flatten(1).double().numpy() @ body.T
    unit = h / np.sqrt((h**2).sum(axis=1, keepdims=True))
    return unit @ (weight / (np.sqrt((weight**2).sum(axis=1, keepdims=True)) + gamma)).T


def softmax64(z: np.ndarray) -> np.ndarray:
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def loss64(body, weight, batch: Batch, x_adv: torch.Tensor, gamma: float) -> float:
    """s = 8, m = 0.2, tau_b = 1.2, tau_m = 0.4, beta = 3."""
    adversarial, clean = (cosines64(body, weight, images, gamma) for images in (x_adv, batch.images))
    labels, n = batch.labels.numpy(), COUNTS.double().numpy()
    z = 8 * adversarial + 1.2 * np.log(n / n.sum())
    for i, label in enumerate(labels):
        z[i, label] -= 8 * (0.4 / 8 * np.log(n[label] / n.min()) + 0.2)
    l_1 = -np.log(softmax64(z)[np.arange(len(labels)), labels]).mean()
    p, q = softmax64(clean), softmax64(adversarial)
    return l_1 + 3 * (p * np.log(p / q)).sum() / len(labels)


@pytest.mark.parametrize(("inference", "gamma"), [((), 1 / 32), (ADJUSTED, 1 / 16)])
def test_the_loss_and_its_gradient_are_those_of_the_formula(inference, gamma: float, batch: Batch, x_adv):
    constants = ("scale=8", "margin=0.2", "tau_b=1.2", "tau_m=0.4", "beta=3")
    method = make(*(f"robal.{constant}" for constant in constants), *inference)
    model = prepared(method)
    terms = loss_of(method, model, batch, x_adv, **PROGRESS)
    terms.loss.backward()
    body, weight = (p.detach().double().numpy() for p in (model.body, model.linear.weight))
    assert terms.loss.item() == pytest.approx(loss64(body, weight, batch, x_adv, gamma), rel=1e-5)
    for matrix, gradient in ((body, model.body.grad), (weight, model.linear.weight.grad)):
        expected = np.zeros_like(matrix)
        for index in np.ndindex(*matrix.shape):
            at = matrix[index]
            matrix[index] = at + 1e-6
            ahead = loss64(body, weight, batch, x_adv, gamma)
            matrix[index] = at - 1e-6
            expected[index] = (ahead - loss64(body, weight, batch, x_adv, gamma)) / 2e-6
            matrix[index] = at
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=2e-3, atol=2e-5)


def test_the_rarest_class_has_the_plain_margin_and_the_head_the_largest():
    margins = make("robal.margin=0.1", "robal.tau_m=0.3", "robal.scale=10").margins(log_share(COUNTS))
    assert margins[4].item() == pytest.approx(0.1)
    assert margins[0].item() == pytest.approx(0.1 + 0.03 * np.log(20))
    assert (margins.diff() < 0).all()


def test_the_deployed_logits_are_scaled_and_adjusted_and_training_reads_the_cosines_back(batch: Batch):
    method = make(*ADJUSTED)
    model = prepared(method)
    body, weight = (p.detach().double().numpy() for p in (model.body, model.linear.weight))
    expected = cosines64(body, weight, batch.images, 1 / 16)
    logits = model(batch.images)
    shares = np.log(COUNTS.numpy() / COUNTS.sum().item())
    np.testing.assert_allclose(logits.detach().numpy(), 10 * expected - 1.7 * shares, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(method.cosines(logits).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_the_attack_is_the_published_one_on_the_cosines(batch: Batch, monkeypatch):
    seen = {}

    def spy(model, x, y, **settings):
        seen.update(settings)
        return x

    monkeypatch.setattr("ltat.methods.attacking.pgd", spy)
    method = make(*ADJUSTED)
    model = prepared(method)
    attack_of(method, model, batch, torch.Generator(), **PROGRESS)
    assert {"steps": 5, "step_size": 0.0078, "start": "pos_uniform", "mode": "eval"}.items() <= seen.items()
    assert (seen["threat"].norm, seen["threat"].eps) == ("linf", 0.031)
    logits = model(batch.images)
    found = seen["objective"](logits, batch.labels, batch.images)
    expected = nn.functional.cross_entropy(method.cosines(logits), batch.labels, reduction="none")
    assert torch.equal(found, expected) and not torch.allclose(
        found, nn.functional.cross_entropy(logits, batch.labels, reduction="none"), atol=0.1
    )


def test_an_attack_on_the_divergence_from_itself_compares_cosines_with_cosines(batch: Batch, x_adv):
    method = make(*ADJUSTED, "attack.loss=kl-self")
    model = prepared(method)
    objective = objective_of(method, model, batch)
    with torch.no_grad():
        at_x, at_x_adv = (objective(model(x), batch.labels, x) for x in (batch.images, x_adv))
        log_p, log_q = (method.cosines(model(x)).double().log_softmax(1) for x in (batch.images, x_adv))
    assert at_x.abs().max() < 1e-6
    torch.testing.assert_close(at_x_adv.double(), (log_p.exp() * (log_p - log_q)).sum(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("extra", "order"), [("true", "axxa"), ("false", "ax")])
def test_each_forward_moves_the_batch_norm_statistics_in_the_codes_order(extra: str, order: str):
    images = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    batch, x_adv = Batch(images, torch.tensor([0, 4, 1, 3, 4, 0, 2]), torch.arange(7)), images * 0.5
    method = make(f"robal.extra_forwards={extra}")
    torch.manual_seed(0)
    model = method.prepare_model(build_model("small", num_classes=CLASSES, in_channels=1)).train()
    torch.manual_seed(0)
    twin = method.prepare_model(build_model("small", num_classes=CLASSES, in_channels=1)).train()
    attack_of(method, model, batch, torch.Generator(), **PROGRESS)
    assert model.bn1.num_batches_tracked.item() == 0
    loss_of(method, model, batch, x_adv, **PROGRESS).loss.backward()
    for which in order:
        twin(x_adv if which == "a" else images)
    assert model.bn1.num_batches_tracked.item() == len(order)
    assert torch.equal(model.bn1.running_mean, twin.bn1.running_mean)


def test_extra_forwards_change_no_loss(batch: Batch, x_adv):
    losses = set()
    for extra in ("true", "false"):
        method = make(f"robal.extra_forwards={extra}")
        losses.add(loss_of(method, prepared(method), batch, x_adv, **PROGRESS).loss.item())
    assert len(losses) == 1


def test_the_codes_learning_rate_falls_in_every_epoch_from_60_on():
    config = load_config(lambda m: find_method(m).Config, settings={"method": "robal"}).config
    rates = {epoch: learning_rate(config.schedule, 0.1, epoch, 80) for epoch in (1, 59, 60, 61, 62, 74, 75, 76)}
    expected = {1: 1e-1, 59: 1e-1, 60: 1e-2, 61: 1e-3, 62: 1e-4, 74: 1e-16, 75: 1e-18, 76: 1e-20}
    assert rates == pytest.approx(expected, rel=1e-9, abs=0)


def test_new_weights_lie_in_the_published_range():
    weight = CosineClassifier(400, 10).weight
    assert weight.abs().max() <= 1 / 20 and weight.std().item() == pytest.approx(1 / 20 / 3**0.5, rel=0.05)


def test_images_without_features_give_finite_logits():
    head = CosineClassifier(6, 3)
    h = torch.zeros(2, 6, requires_grad=True)
    head(h).sum().backward()
    assert h.grad.isfinite().all()


def test_a_network_whose_last_layer_cannot_be_replaced_is_refused():
    model = TwoLayers()
    model.replace_classifier(nn.Sequential(nn.Linear(WIDTH, CLASSES)))
    with pytest.raises(LtatError, match="features"):
        make().prepare_model(model)


@pytest.mark.parametrize("setting", ["robal.scale=0", "robal.margin=-1", "robal.tau=1"])
def test_settings_out_of_range_are_refused(setting: str):
    with pytest.raises(LtatError, match=setting.partition("=")[0]):
        make(setting)
