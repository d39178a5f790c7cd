"""FAAL: its weights against brute force, its loss, its attack and its forwards."""

import numpy as np
import pytest
import torch

from ltat.attacks import cross_entropy
from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods.faal import class_gains, worst_distribution
from tests.methods.making import attack_of, loss_of, make_method, random_batch
from tests.methods.test_attack_and_modes import buffers, network, same
from tests.methods.test_losses import Linear, gradient64, log_softmax, logits64

COUNTS = torch.tensor([30, 20, 10, 5])


def make(*assignments: str):
    return make_method("faal", *assignments, counts=COUNTS)


@pytest.fixture
def small() -> Batch:
    batch = random_batch(7, 3, 2, 2, classes=5)
    return batch._replace(labels=torch.tensor([0, 0, 0, 1, 3, 3, 1]))  # classes 2 and 4 are absent


def divergence(p: np.ndarray) -> np.ndarray:
    """KL(uniform || p) of distributions over the last axis."""
    return -np.log(p).mean(axis=-1) - np.log(p.shape[-1])


def best_on_a_grid(gains: list[float], radius: float, points: int = 1500) -> float:
    """The largest p @ g over the 3-simplex, tried on a grid."""
    a, b = np.meshgrid(*[np.linspace(0, 1, points + 2)[1:-1]] * 2)
    p = np.stack([a, b, 1 - a - b], axis=-1)[a + b < 1]
    p = p[(p > 0).all(axis=-1)]
    return (p[divergence(p) <= radius] @ np.array(gains)).max()


@pytest.mark.parametrize("radius", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("gains", [[-3.0, 0.2, 1.5], [0.4, 0.4, -0.1], [-0.9, -0.9, -0.8], [-20.0, -0.5, 0.0]])
def test_no_distribution_in_the_ball_is_worse_than_the_one_found(gains: list[float], radius: float):
    p = worst_distribution(torch.tensor(gains, dtype=torch.float64), radius).numpy()
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert divergence(p) == pytest.approx(radius, rel=1e-7)  # a linear gain has its maximum on the boundary
    best, spread = best_on_a_grid(gains, radius), max(gains) - min(gains)
    assert best - 1e-9 <= p @ np.array(gains) < best + 3e-3 * spread  # the grid's own distance from the maximum


@pytest.mark.parametrize("classes", [10, 100, 1000])
@pytest.mark.parametrize("shape", ["one rises above", "one falls below", "all differ"])
def test_many_classes_reach_the_radius_too(classes: int, shape: str):
    shapes = {"one rises above": -torch.eye(classes)[0], "one falls below": torch.eye(classes)[0]}
    gains = -shapes.get(shape, torch.linspace(-1, 1, classes) ** 3).double()
    p = worst_distribution(gains, 0.5).numpy()
    assert divergence(p) == pytest.approx(0.5, rel=1e-6) and p.sum() == pytest.approx(1, abs=1e-9)
    assert (np.argsort(p, kind="stable") == np.argsort(gains.numpy(), kind="stable")).all()


@pytest.mark.parametrize(("gains", "radius"), [([0.3, 0.3, 0.3], 0.5), ([0.1, 0.5, 0.2], 0.0)])
def test_equal_gains_or_no_radius_leave_the_weights_uniform(gains: list[float], radius: float):
    p = worst_distribution(torch.tensor(gains, dtype=torch.float64), radius)
    torch.testing.assert_close(p, torch.full((3,), 1 / 3, dtype=torch.float64))


def gains64(logits: np.ndarray, labels: np.ndarray, gain: str) -> np.ndarray:
    """g_c, image by image."""
    collected = [[] for _ in range(logits.shape[1])]
    for q, y in zip(np.exp(log_softmax(logits)), labels, strict=True):
        collected[y].append(max(q[k] for k in range(len(q)) if k != y) - q[y])
    if gain == "images":
        return np.array([sum(margins) for margins in collected])
    return np.array([np.mean(margins) if margins else -1.0 for margins in collected])


def search(gains: np.ndarray, radius: float) -> np.ndarray:
    """The worst distribution by brute force over nu, on a fine grid."""
    above = np.exp(np.linspace(np.log(1e-9), np.log(1e6), 400_001))
    p = 1 / (above[:, None] + gains.max() - gains)
    p /= p.sum(axis=1, keepdims=True)
    allowed = divergence(p) <= radius
    return p[allowed][(p[allowed] @ gains).argmax()]


@pytest.mark.parametrize("gain", ["images", "classes"])
def test_the_loss_and_its_gradient_are_those_of_the_formula(gain: str, small: Batch):
    student, labels = Linear(2), small.labels.numpy()
    x_adv = small.images**2
    terms = loss_of(make(f"faal.gain={gain}", "faal.radius=0.3"), student, small, x_adv)
    terms.loss.backward()
    bias, weight = (p.detach().double().numpy() for p in (student.bias, student.weight))
    start = logits64(weight, bias, x_adv)
    p = search(gains64(start, labels, gain), 0.3)

    def loss64(weight: np.ndarray) -> float:
        own = log_softmax(logits64(weight, bias, x_adv))[np.arange(7), labels]
        return 5 / 7 * sum(-p[y] * value for y, value in zip(labels, own, strict=True))

    assert terms.loss.item() == pytest.approx(loss64(weight), rel=2e-4)
    np.testing.assert_allclose(student.weight.grad.numpy(), gradient64(loss64, weight), rtol=2e-3, atol=2e-5)
    assert torch.equal(terms.logits, student(x_adv).detach())
    extremes = [terms.logs[name].item() for name in ("w_min", "w_max")]
    assert extremes == pytest.approx([5 * p.min(), 5 * p.max()], rel=1e-3)


def test_an_absent_class_gains_nothing_or_the_least_there_is(small: Batch):
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    for gain, absent in (("images", 0), ("classes", -1)):
        gains = class_gains(logits, small.labels, gain)
        np.testing.assert_allclose(gains, gains64(logits.double().numpy(), small.labels.numpy(), gain), atol=1e-12)
        assert gains[2] == gains[4] == absent


def test_without_a_radius_it_is_plain_adversarial_training(small: Batch):
    plain = loss_of(make_method("pgd-at", counts=COUNTS), Linear(2), small, small.images)
    terms = loss_of(make("faal.radius=0"), Linear(2), small, small.images)
    assert terms.loss.item() == pytest.approx(plain.loss.item(), rel=1e-6)


def test_margins_of_huge_logits_leave_loss_and_gradient_finite(small: Batch):
    student = Linear(2, scale=1e4)
    loss = loss_of(make(), student, small, small.images).loss
    loss.backward()
    assert loss.isfinite() and student.weight.grad.isfinite().all()


@pytest.mark.parametrize(("extra", "updates"), [("false", 1), ("true", 2)])
def test_batch_norm_sees_adversarial_and_where_asked_clean_images(extra: str, updates: int, batch: Batch):
    model, twin = network(0), network(0)
    x_adv = (batch.images + 0.2).clamp(0, 1)
    loss_of(make(f"faal.extra_forward={extra}"), model, batch, x_adv)
    for images in (x_adv, batch.images)[:updates]:
        twin(images)
    assert model.bn1.num_batches_tracked.item() == updates and same(buffers(twin), model)


def test_the_attack_is_plain_pgd_in_evaluation_mode(batch: Batch, monkeypatch):
    seen = {}
    monkeypatch.setattr("ltat.methods.attacking.pgd", lambda model, x, y, **settings: seen.update(settings) or x)
    attack_of(make(), network(0), batch, torch.Generator())
    assert {"steps": 10, "step_size": 2 / 255, "start": "gauss", "mode": "eval"}.items() <= seen.items()
    assert (seen["threat"].norm, seen["threat"].eps, seen["objective"]) == ("linf", 8 / 255, cross_entropy)
    model = network(0)
    before = buffers(model)
    monkeypatch.undo()
    attack_of(make("attack.steps=2"), model, batch, torch.Generator())
    assert same(before, model) and model.training


def test_the_weights_never_wait_for_the_device():
    gains = torch.empty(4, dtype=torch.float64, device="meta")  # it has no values that a host could wait for
    assert worst_distribution(gains, 0.5).shape == (4,)


@pytest.mark.parametrize("setting", ["faal.radius=-1", "faal.gain=both", "faal.radius=inf"])
def test_settings_that_cannot_be_followed_are_refused(setting: str):
    with pytest.raises(LtatError, match=setting.partition("=")[0]):
        make(setting)
