"""The fast forms of an attack against the exact one."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltat.attacks import ThreatModel, pgd
from ltat.data import load_dataset
from ltat.engine.network import StepNetwork
from ltat.models import Classifier, build_model

EPS = 0.1
FAST = [("fp32", True), ("bf16", None), ("bf16", False), ("fp16", None)]


def images(split) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(split.images).permute(0, 3, 1, 2).float().div(255).contiguous()
    return x, torch.from_numpy(split.labels).long()


@pytest.fixture(scope="module")
def trained() -> Iterator[tuple[Classifier, Tensor, Tensor]]:
    """A network trained for a minute's fraction on digits, and 2,000 images: the test digits, shifted by a pixel."""
    data = load_dataset("digits", imbalance_ratio=2.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("small", num_classes=10, in_channels=1)
        x, y = images(data.train)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(4):
            for batch in torch.randperm(len(x)).split(64):
                x_adv = pgd(model, x[batch], y[batch], threat=ThreatModel(eps=EPS), steps=2, step_size=EPS / 2)
                optimizer.zero_grad()
                F.cross_entropy(model(x_adv), y[batch]).backward()
                optimizer.step()
    x, y = images(data.test)
    shifted = [x, *(x.roll(by, dims) for by in (1, -1) for dims in (2, 3))]
    yield model.eval(), torch.cat(shifted)[:2000], y.repeat(5)[:2000]


def attack(model: nn.Module, x: Tensor, y: Tensor, **how) -> Tensor:
    settings = {"threat": ThreatModel(eps=EPS), "steps": 10, "step_size": EPS / 4, "start": "uniform_clamp"}
    return pgd(model, x, y, **{"generator": torch.Generator().manual_seed(1), **settings, **how})


@pytest.fixture(scope="module")
def exact(trained) -> float:
    return robust_accuracy(*trained)


def robust_accuracy(model: nn.Module, x: Tensor, y: Tensor, **how) -> float:
    """In percent, the mean over two random starts; the network that is asked is the exact one."""
    correct = []
    for seed in (1, 2):
        x_adv = attack(model, x, y, generator=torch.Generator().manual_seed(seed), **how)
        with torch.no_grad():
            correct.append(model(x_adv).argmax(1) == y)
    return 100 * torch.stack(correct).double().mean().item()


@pytest.mark.parametrize(("precision", "fold"), FAST[:3])  # fp16 is emulated, and slow, on most CPUs
def test_a_fast_attack_is_as_strong_as_the_exact_one_to_a_fifth_of_a_point(precision, fold, trained, exact):
    model, x, y = trained
    assert len(x) == 2000 and 20 < exact < 80
    found = robust_accuracy(model, x, y, precision=precision, fold=fold)
    assert abs(found - exact) <= 0.2, (found, exact)


@pytest.mark.parametrize(("precision", "fold"), [("fp32", None), *FAST])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_adversaries_are_legal_on_every_path(norm, precision, fold, trained):
    model, x, y = trained
    threat = ThreatModel(norm=norm, eps=EPS if norm == "linf" else 0.7)
    x, y = x[:100], y[:100]
    x_adv = attack(model, x, y, threat=threat, steps=4, precision=precision, fold=fold)
    assert threat.contains(x_adv, x).all() and x_adv.dtype == torch.float32 and not torch.equal(x_adv, x)


def test_full_precision_stays_the_exact_reference(trained, monkeypatch):
    monkeypatch.setattr(StepNetwork, "folded", lambda self: pytest.fail("folded"))
    model, x, y = trained
    x, y = x[:100], y[:100]
    x_adv = x + 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for _ in range(5):
        leaf = x_adv.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        x_adv = (x_adv + 0.02 * gradient.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    found = attack(model, x, y, steps=5, step_size=0.02, start="gauss")
    assert torch.equal(found, x_adv)
    assert torch.equal(found, attack(StepNetwork(model), x, y, steps=5, step_size=0.02, start="gauss", fold=False))


@pytest.mark.parametrize("mode", ["train", "train_frozen_stats"])
def test_batch_statistics_are_never_folded_away(mode, trained, monkeypatch):
    model, x, y = trained
    monkeypatch.setattr(StepNetwork, "folded", lambda self: pytest.fail("folded"))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attack(model, x[:20], y[:20], steps=2, mode=mode, precision="bf16", fold=True)
    model.load_state_dict(state)
    assert not model.training


def test_a_kept_copy_attacks_the_network_as_it_is_now(trained):
    model, x, y = trained
    x, y = x[:200], y[:200]
    network = StepNetwork(model, "bf16")
    before = attack(network, x, y, precision="bf16")
    kept = network.folded(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model.conv2.weight.neg_()
        model.bn1.running_mean.add_(0.5)
    after = attack(network, x, y, precision="bf16")
    fresh = attack(model, x, y, precision="bf16")
    model.load_state_dict(state)
    assert network.folded(x) is kept
    assert torch.equal(after, fresh) and not torch.equal(after, before)


def test_any_other_module_is_attacked_unfolded_and_that_is_said(trained):
    _, x, y = trained
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    x, y = x[:50], y[:50]
    with pytest.warns(UserWarning, match=r"the network itself: Sequential has no convolution"):
        found = attack(plain, x, y, fold=True)
    assert torch.equal(found, attack(plain, x, y))


def test_no_weight_has_a_gradient_and_all_are_free_again(trained):
    model, x, y = trained
    for precision, fold in FAST:
        attack(model, x[:20], y[:20], steps=2, precision=precision, fold=fold)
        assert all(p.grad is None or p.requires_grad for p in model.parameters())
        assert all(p.requires_grad for p in model.parameters()) and not model.training


def test_a_folded_attack_works_where_autograd_is_off(trained):
    model, x, y = trained
    expected = attack(model, x[:50], y[:50], fold=True)
    with torch.inference_mode():
        inside = attack(model, x[:50], y[:50], fold=True)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attack(model, x[:50], y[:50], fold=True), expected)
    assert torch.equal(inside, expected)
