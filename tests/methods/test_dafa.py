"""DAFA: its weights, where they come from, and what they multiply."""

import numpy as np
import pytest
import torch
from torch import nn

from ltat.config import Asked
from ltat.config.resolving import resolve
from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods import LossTerms, attacking
from ltat.methods.dafa import Dafa, DafaConfig, above, class_weights
from tests.methods.making import Steep, attack_of, loss_of, make_method, step_of
from tests.methods.test_attack_and_modes import buffers, network, same
from tests.methods.test_losses import Linear, gradient64, log_softmax, logits64

COUNTS = torch.tensor([30, 20, 10, 5])
FIVE = torch.tensor([30, 20, 10, 5, 4])


def make(*assignments: str, counts: torch.Tensor = COUNTS) -> Dafa:
    return make_method("dafa", *assignments, counts=counts)


def random_similarity(classes: int, seed: int = 0) -> torch.Tensor:
    logits = torch.randn(classes, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (logits + 2 * torch.eye(classes)).softmax(dim=1)


def weights64(p: np.ndarray, scale: float) -> np.ndarray:
    """Pair by pair: the weaker class takes from the stronger the product of similarity and strength."""
    w = np.ones(len(p))
    for a in range(len(p)):
        for b in range(len(p)):
            if p[a, a] < p[b, b]:
                w[a] += scale * p[a, b] * p[b, b]
                w[b] -= scale * p[a, b] * p[b, b]
    return w


@pytest.mark.parametrize("classes", [3, 10])
def test_what_the_weaker_class_gains_the_stronger_loses(classes: int):
    p = random_similarity(classes)
    w = class_weights(p, 1.5)
    np.testing.assert_allclose(w, weights64(p.numpy(), 1.5), atol=1e-12)
    assert w.sum().item() == pytest.approx(classes, abs=1e-12)
    assert w[p.diagonal().argmin()] > 1 > w[p.diagonal().argmax()]


def test_two_classes_of_one_strength_both_lose():
    w = class_weights(torch.tensor([[0.7, 0.3], [0.3, 0.7]], dtype=torch.float64), 1.0)
    torch.testing.assert_close(w, torch.full((2,), 1 - 0.3 * 0.7, dtype=torch.float64))


def test_a_head_class_that_attracts_all_others_keeps_a_positive_weight_and_the_sum_remains():
    p = torch.full((10, 10), 0.01, dtype=torch.float64)
    p[:, 0] = 0.91
    p[1:] += torch.diag(torch.linspace(0.01, 0.05, 10, dtype=torch.float64))[1:]
    raw = class_weights(p, 1.0)
    assert raw[0] < 0
    w = above(raw, 0.1)
    assert w.min().item() == pytest.approx(0.1) and w.sum().item() == pytest.approx(raw.sum().item())
    torch.testing.assert_close(w - 1, (w[0] - 1) / (raw[0] - 1) * (raw - 1))


@pytest.mark.parametrize("weights", [[0.8, 1.2], [1.0, 1.0]])
def test_weights_above_the_floor_stay_as_they_are(weights: list[float]):
    given = torch.tensor(weights)
    assert torch.equal(above(given, 0.1), given)


def weighted(*weights: float, assignments: tuple[str, ...] = ()) -> Dafa:
    method = make(*assignments, counts=torch.full((len(weights),), 9))
    method.load_state_dict({"weights": torch.tensor(weights)})
    return method


@pytest.mark.parametrize("weights", [(1.0,) * 5, (0.4, 1.6, 1.0, 0.7, 1.3)])
def test_the_loss_and_its_gradient_weigh_cross_entropy_and_not_the_divergence(weights, small: Batch):
    student, x_adv, labels = Linear(2), small.images**2, small.labels.numpy()
    terms = loss_of(weighted(*weights, assignments=("dafa.beta=1.5",)), student, small, x_adv, epoch=1, epochs=100)
    terms.loss.backward()
    bias, weight = (p.detach().double().numpy() for p in (student.bias, student.weight))

    def loss64(weight: np.ndarray) -> float:
        log_p, log_q = (log_softmax(logits64(weight, bias, images)) for images in (small.images, x_adv))
        each = [-weights[y] * row[y] for y, row in zip(labels, log_p, strict=True)]
        return float(np.mean(each) + 1.5 * (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())

    assert terms.loss.item() == pytest.approx(loss64(weight), rel=1e-5)
    np.testing.assert_allclose(student.weight.grad.numpy(), gradient64(loss64, weight), rtol=2e-3, atol=2e-5)
    assert torch.equal(terms.logits, student(x_adv).detach())


def test_a_probability_that_underflows_leaves_loss_and_gradient_finite(small: Batch):
    model = Steep()
    terms = loss_of(make(counts=FIVE), model, small, 1 - small.images, epoch=1, epochs=100)
    terms.loss.backward()
    assert terms.logs["kl"].item() == pytest.approx(200, rel=1e-3)
    assert model.scale.grad.isfinite() and model.scale.grad != 0


def one_epoch(method: Dafa, epoch: int, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    method.begin_epoch(epoch)
    for logits, labels in batches:
        step = step_of(method, nn.Identity(), Batch(torch.empty(0), labels, labels), epoch=epoch)
        method.end_step(step, LossTerms(torch.zeros(()), logits, {}))
    method.end_epoch(epoch)


def batches(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.tensor([0, 1, 1, 3, 3, 0]), torch.tensor([3, 0, 1])]  # class 2 is absent
    return [(2 * torch.randn(len(y), 4, generator=generator), y) for y in labels]


def test_only_the_last_epoch_of_the_warm_up_makes_the_weights():
    method = make("train.epochs=10", "dafa.warmup=4", "dafa.floor=0")
    one_epoch(method, 3, batches(1))
    assert torch.equal(method.weights, torch.ones(4))
    one_epoch(method, 4, batches(2))
    logits, labels = (torch.cat(parts).double().numpy() for parts in zip(*batches(2), strict=True))
    similarity = np.array(
        [np.exp(log_softmax(logits))[labels == c].mean(axis=0) if c != 2 else np.zeros(4) for c in range(4)]
    )
    np.testing.assert_allclose(method.weights, weights64(similarity, 1.0), atol=1e-6)
    assert method.weights[2] == 1
    kept = method.weights.clone()
    one_epoch(method, 5, batches(3))
    assert torch.equal(method.weights, kept)


def test_the_weights_survive_an_interruption():
    method, resumed = make("train.epochs=10", "dafa.warmup=2"), make("train.epochs=10", "dafa.warmup=2")
    one_epoch(method, 2, batches(2))
    resumed.load_state_dict(method.state_dict())
    assert torch.equal(resumed.weights, method.weights) and resumed.weights.std() > 0.01


@pytest.mark.parametrize(
    ("setting", "epochs", "expected"), [(0.64, 110, 70), (0.64, 100, 64), (0.64, 2, 1), (0.29, 100, 29), (70, 110, 70)]
)
def test_the_warm_up_is_a_share_or_a_number_of_epochs(setting: float, epochs: int, expected: int):
    assert make(f"dafa.warmup={setting}", f"train.epochs={epochs}").warmup_epochs == expected


def test_lambda_left_out_is_the_authors_for_the_number_of_classes():
    assert [resolve(Asked(DafaConfig()), n).dafa.scale for n in (10, 100)] == [1.0, 1.5]
    assert resolve(Asked(DafaConfig.model_validate({"dafa": {"scale": 0}})), 100).dafa.scale == 0


def test_the_attack_gives_every_class_its_own_radius_and_step(batch: Batch, monkeypatch):
    seen = {}
    monkeypatch.setattr(attacking, "pgd", lambda model, x, y, **settings: seen.update(settings) or x)
    method = weighted(0.5, 1.0, 1.5, 2.0)
    attack_of(method, network(0), batch, torch.Generator(), epoch=70, epochs=100)
    assert {"steps": 10, "start": "gauss", "mode": "eval"}.items() <= seen.items()
    each = torch.tensor([0.5, 1.0, 1.5, 2.0])[batch.labels]
    assert torch.equal(seen["threat"].eps, each * (8 / 255)) and torch.equal(seen["step_size"], each * (2 / 255))
    assert method.threat.eps == 8 / 255  # evaluation's
    logits = torch.randn(6, 4)
    model = network(0).eval()
    log_p, log_q = model(batch.images).log_softmax(1), logits.log_softmax(1)
    expected = (log_p.exp() * (log_p - log_q)).sum(1)
    torch.testing.assert_close(seen["objective"](logits, batch.labels, batch.images), expected)


def test_the_class_wise_radius_multiplies_the_weights(batch: Batch, monkeypatch):
    balls = []
    monkeypatch.setattr(attacking, "pgd", lambda model, x, y, **settings: balls.append(settings["threat"]) or x)
    method, trades = make("radius.share=0.5"), make_method("trades", "radius.share=0.5", counts=COUNTS)
    method.load_state_dict({"weights": torch.tensor([0.5, 1.0, 1.5, 2.0])})
    for each in (method, trades):
        attack_of(each, network(0), batch, torch.Generator(), epoch=70, epochs=100)
    both, alone = (ball.eps for ball in balls)
    assert alone.std() > 0.01 * (8 / 255)
    torch.testing.assert_close(both, method.weights[batch.labels] * alone)


def test_images_reach_the_radius_of_their_class_and_no_further(batch: Batch):
    model, method = network(0), weighted(0.5, 1.0, 1.5, 2.0, assignments=("attack.norm=linf",))
    before = buffers(model)
    x_adv = attack_of(method, model, batch, torch.Generator().manual_seed(1), epoch=70, epochs=100)
    assert same(before, model) and model.training
    reached = (x_adv - batch.images).abs().flatten(1).amax(dim=1)
    torch.testing.assert_close(reached, method.weights[batch.labels] * (8 / 255), rtol=0, atol=1e-6)


def test_during_the_warm_up_the_images_are_those_of_trades(batch: Batch):
    model = network(0)
    images = [
        attack_of(make_method(name, counts=COUNTS), model, batch, torch.Generator().manual_seed(1), epoch=1, epochs=100)
        for name in ("dafa", "trades")
    ]
    assert torch.equal(*images)


def test_batch_norm_sees_adversarial_images_before_clean_ones(batch: Batch):
    model, twin = network(0), network(0)
    x_adv = (batch.images + 0.2).clamp(0, 1)
    loss_of(make(), model, batch, x_adv, epoch=1, epochs=100)
    for images in (x_adv, batch.images):
        twin(images)
    assert model.bn1.num_batches_tracked.item() == 2 and same(buffers(twin), model)


@pytest.mark.parametrize(
    "setting", ["dafa.warmup=0", "dafa.warmup=1", "dafa.warmup=100", "dafa.floor=1", "dafa.scale=-1", "dafa.beta=-1"]
)
def test_settings_that_cannot_be_followed_are_refused(setting: str):
    with pytest.raises(LtatError, match=setting.partition("=")[0]):
        make(setting)


def test_an_attack_that_starts_in_the_minimum_of_the_divergence_is_refused():
    with pytest.raises(LtatError, match=r"attack\.start=zero"):
        make("attack.start=zero")
