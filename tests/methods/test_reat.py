"""REAT against its formulas, written out pair by pair, and what its state and its attack do."""

import numpy as np
import pytest
import torch
from torch import nn

from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods.reat import SIGN_OF_PAIRS, TAIL_SETS, rbl_weights, tail_term
from ltat.models import Classifier, build_model
from tests.methods.making import attack_of, loss_of, make_method, objective_of, step_of
from tests.methods.test_losses import gradient64

CLASSES, WIDTH = 5, 6
COUNTS = torch.tensor([40, 20, 10, 5, 2])  # the tail is class 3 and 4
PROGRESS = {"epoch": 1, "epochs": 2}


def make(*assignments: str, counts: torch.Tensor = COUNTS):
    return make_method("reat", *assignments, counts=counts)


class Linear(Classifier):
    """h = V x, f = W h; small enough to differentiate by hand."""

    def __init__(self) -> None:
        super().__init__(CLASSES, 1, None)
        generator = torch.Generator().manual_seed(2)
        self.body = nn.Parameter(0.5 * torch.randn(WIDTH, 16, generator=generator))
        self.linear = nn.Linear(WIDTH, CLASSES, bias=False)
        self.linear.weight.data = torch.randn(CLASSES, WIDTH, generator=generator)

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.body.T


@pytest.fixture
def batch() -> Batch:
    images = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.tensor([0, 4, 1, 3, 4, 0, 2]), torch.arange(7))


def log_softmax64(z: np.ndarray) -> np.ndarray:
    z = z - z.max()
    return z - np.log(np.exp(z).sum())


def tail64(h: np.ndarray, fixed: np.ndarray, labels: np.ndarray, impl: str, sign: str) -> float:
    """TAIL by loops; ``fixed`` are the features through which no gradient flows."""
    omega = (COUNTS.numpy() / COUNTS.sum().item()) ** -0.5
    terms = []
    for i in np.flatnonzero(labels >= 3):
        p = log_softmax64(fixed[i])
        k = np.array([(np.exp(p) * (p - log_softmax64(row))).mean() for row in h])
        same = -1 if sign == "code" else 1
        s = np.array([(same if labels[i] == other else -same) * (omega[labels[i]] + omega[other]) for other in labels])
        terms.append(k.mean() * s.mean() if impl == "code" else (k * s).mean())
    return float(np.mean(terms)) if terms else 0.0


def loss64(body, weight, fixed_body, batch: Batch, impl: str, sign: str) -> float:
    x, labels = batch.images.flatten(1).double().numpy(), batch.labels.numpy()
    h = x @ body.T
    prior = 0.5 * np.log(COUNTS.numpy())
    rows = [log_softmax64(row + prior) for row in h @ weight.T]
    cls = -np.mean([row[label] for row, label in zip(rows, labels, strict=True)])
    return cls + 0.8 * tail64(h, x @ fixed_body.T, labels, impl, sign)


@pytest.mark.parametrize("impl", ["code", "per_pair"])
@pytest.mark.parametrize("sign", ["code", "intended"])
def test_the_loss_and_its_gradient_are_those_of_the_formula(impl: str, sign: str, batch: Batch):
    model = Linear()
    method = make(f"reat.tail_impl={impl}", f"reat.tail_sign={sign}", "reat.tail=0.8", "bsl.tau=0.5")
    terms = loss_of(method, model, batch, batch.images, **PROGRESS)
    terms.loss.backward()
    body, weight = (p.detach().double().numpy() for p in (model.body, model.linear.weight))
    assert terms.loss.item() == pytest.approx(loss64(body, weight, body, batch, impl, sign), rel=1e-5)
    expected = gradient64(lambda moved: loss64(moved, weight, body, batch, impl, sign), body)
    np.testing.assert_allclose(model.body.grad.numpy(), expected, rtol=2e-3, atol=2e-5)


def test_a_batch_without_tail_images_has_no_tail_term():
    features = torch.randn(4, WIDTH, requires_grad=True)
    term = tail_term(features, torch.tensor([0, 1, 2, 0]), COUNTS, TAIL_SETS["index"](COUNTS), "code", 1.0)
    term.backward()
    assert term.item() == 0 and features.grad.abs().max() == 0


def test_the_codes_sign_draws_classes_together_and_the_intended_one_parts_them():
    features, labels = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1)), torch.tensor([4, 0])

    def distance_after_descent(sign: str) -> float:
        h = features.clone().requires_grad_()
        tail_term(h, labels, COUNTS, TAIL_SETS["index"](COUNTS), "per_pair", SIGN_OF_PAIRS[sign]).backward()
        p, q = (h - 0.1 * h.grad).detach().log_softmax(1)
        return (p.exp() * (p - q)).sum().item()

    assert distance_after_descent("code") < distance_after_descent("intended")


def test_far_features_give_a_finite_term_and_gradient():
    h = torch.tensor([[200.0, 0, 0], [0, 200.0, 0]], requires_grad=True)
    tail_term(h, torch.tensor([4, 0]), COUNTS, TAIL_SETS["index"](COUNTS), "per_pair", 1.0).backward()
    assert h.grad.isfinite().all() and h.grad.abs().sum() > 0


@pytest.mark.parametrize(("classes", "first"), [(4, 3), (5, 3), (10, 7), (100, 67)])
def test_the_tail_is_the_last_third_of_the_labels_or_of_the_counts(classes: int, first: int):
    counts = torch.arange(classes, 0, -1)
    assert TAIL_SETS["index"](counts).nonzero()[0].item() == first
    assert torch.equal(TAIL_SETS["count"](counts), TAIL_SETS["index"](counts))
    assert torch.equal(TAIL_SETS["count"](counts.flip(0)), TAIL_SETS["index"](counts).flip(0))


def test_the_first_epochs_weights_are_those_of_the_training_counts():
    n = COUNTS.double().numpy()
    effective = n * (1 - (1 - 1 / n) ** n)
    expected = 1 / (effective + 1e-5)
    expected *= CLASSES / expected.sum()
    np.testing.assert_allclose(rbl_weights(COUNTS, COUNTS).numpy(), expected, rtol=1e-9)


def test_weights_are_finite_and_sum_to_the_classes_whatever_was_predicted():
    counts = torch.tensor([500, 20, 1, 1])
    weights = rbl_weights(counts, torch.tensor([0, 3, 0, 700]))
    assert weights.isfinite().all() and weights.sum().item() == pytest.approx(4)
    assert weights[0] == weights[2] > weights[1]  # never predicted: E = 0


def at_zero(method, batch: Batch) -> torch.Tensor:
    return objective_of(method, nn.Identity(), batch)(torch.zeros(7, CLASSES), batch.labels, batch.images)


def test_the_attacks_weights_follow_the_predictions_of_the_previous_epoch(batch: Batch):
    model, method = Linear(), make("attack.mode=train")
    first = at_zero(method, batch)
    weights = rbl_weights(COUNTS, COUNTS).float()
    torch.testing.assert_close(first, np.log(CLASSES) * weights[batch.labels])
    method.begin_epoch(1)
    predicted = torch.zeros(CLASSES, dtype=torch.int64)
    for _ in range(2):
        terms = loss_of(method, model, batch, batch.images, epoch=1, epochs=3)
        loss_of(method, model, batch, batch.images)  # as a perturbation of the weights asks once more
        method.end_step(step_of(method, model, batch), terms)
        predicted += torch.bincount(terms.logits.argmax(1), minlength=CLASSES)
    assert torch.equal(at_zero(method, batch), first)  # not before the epoch ends
    method.end_epoch(1)
    second = at_zero(method, batch)
    torch.testing.assert_close(second, np.log(CLASSES) * rbl_weights(COUNTS, predicted).float()[batch.labels])
    method.begin_epoch(2)
    method.end_epoch(2)
    assert method.predicted.sum() == 0 and predicted.sum() == 14


def test_the_predictions_survive_an_interruption(batch: Batch):
    method, resumed = make("attack.mode=train"), make("attack.mode=train")
    resumed.load_state_dict({})
    method.end_step(step_of(method, Linear(), batch), loss_of(method, Linear(), batch, batch.images, **PROGRESS))
    resumed.load_state_dict(method.state_dict())
    assert torch.equal(resumed.counting, method.counting) and resumed.predicted is None
    method.end_epoch(1)
    resumed.load_state_dict(method.state_dict())
    assert torch.equal(resumed.predicted, method.predicted) and resumed.predicted.sum() == 7
    assert torch.equal(at_zero(resumed, batch), at_zero(method, batch))


def test_the_attack_is_the_published_one(batch: Batch, monkeypatch):
    seen = {}

    def spy(model, x, y, **settings):
        seen.update(settings)
        return x

    monkeypatch.setattr("ltat.methods.attacking.pgd", spy)
    attack_of(make(), Linear(), batch, torch.Generator(), **PROGRESS)
    assert {"steps": 10, "step_size": 2 / 255, "start": "uniform", "mode": "eval"}.items() <= seen.items()
    assert (seen["threat"].norm, seen["threat"].eps) == ("linf", 8 / 255)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("small", num_classes=CLASSES, in_channels=1).train()


@pytest.fixture
def pictures() -> Batch:
    images = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.tensor([0, 4, 1, 3, 4, 0, 2]), torch.arange(7))


@pytest.mark.parametrize(("mode", "matters"), [("eval", False), ("train_frozen_stats", True)])
def test_the_weights_move_images_only_where_the_batch_couples_them(mode: str, matters: bool, pictures: Batch):
    noise = torch.Generator()
    weighted, plain = (
        attack_of(
            make_method(name, f"attack.mode={mode}", "attack.start=zero", counts=COUNTS),
            network(),
            pictures,
            noise,
            **PROGRESS,
        )
        for name in ("reat", "at-bsl")
    )
    moved = ((weighted - plain).abs() > 1e-4).float().mean().item()
    assert moved > 0.02 if matters else moved < 0.002  # rounding may turn a step where the gradient is all but zero


def test_an_fp16_attack_moves_the_images_of_every_class(pictures: Batch):
    counts, model = torch.tensor([5000, 20, 10, 5, 1]), network()
    model.classifier.weight.data.mul_(0.01)  # gradients as small as those of a network of many layers
    method = make("train.precision=fp16", "attack.start=zero", counts=counts)
    method.predicted = torch.tensor([5000, 20, 10, 5, 0])  # one class is never predicted: the others weigh 1e-5 of it
    moved = attack_of(method, model, pictures, torch.Generator(), **PROGRESS) != pictures.images
    assert (moved.flatten(1).float().mean(1) > 0.5).all()


@pytest.mark.parametrize("mode", ["train", "train_frozen_stats"])
def test_weights_that_would_underflow_where_they_act_are_refused(mode: str):
    with pytest.raises(LtatError, match=rf"fp16 attack in mode {mode}"):
        make("train.precision=fp16", f"attack.mode={mode}")


def test_one_forward_moves_the_batch_norm_statistics_and_the_attack_none(pictures: Batch):
    model, method = network(), make()
    x_adv = attack_of(method, model, pictures, torch.Generator(), **PROGRESS)
    assert model.bn1.num_batches_tracked.item() == 0
    loss_of(method, model, pictures, x_adv, **PROGRESS)
    assert model.bn1.num_batches_tracked.item() == 1


def test_a_tail_of_no_class_is_refused():
    few = torch.tensor([30, 10, 3])
    with pytest.raises(LtatError, match=r"reat\.tail=0"):
        make(counts=few)
    make("reat.tail=0", counts=few)


@pytest.mark.parametrize("setting", ["reat.tail_impl=both", "reat.tail_sign=1", "reat.tail_set=rare", "reat.tail=-1"])
def test_unknown_settings_are_refused(setting: str):
    with pytest.raises(LtatError, match=setting.partition("=")[0]):
        make(setting)


def test_a_network_that_does_not_tell_its_features_is_refused(batch: Batch):
    with pytest.raises(LtatError, match="features"):
        loss_of(make(), nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)), batch, batch.images, **PROGRESS)
