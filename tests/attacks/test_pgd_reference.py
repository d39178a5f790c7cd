"""PGD against an independent implementation, and what it promises to leave alone."""

import numpy as np
import pytest
import torch
from torch import nn

from ltat.attacks import (
    MODES,
    OBJECTIVES,
    STARTS,
    ThreatModel,
    cross_entropy,
    frozen_batch_norm_statistics,
    pgd,
    random_start,
)
from ltat.errors import LtatError
from ltat.models import build_model

CLASSES = 4


class Net(nn.Module):
    """A small convolutional net with batch norm and dropout-free training mode."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(2, 6, 3, padding=1)
            self.bn = nn.BatchNorm2d(6)
            self.linear = nn.Linear(6, CLASSES)
            self.bn.running_mean.normal_()
            self.bn.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.tanh(self.bn(self.conv(x))).mean(dim=(2, 3)))


@pytest.fixture
def net() -> Net:
    return Net()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(9, 2, 5, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def y() -> torch.Tensor:
    return torch.randint(CLASSES, (9,), generator=torch.Generator().manual_seed(2))


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def reference_pgd(model: nn.Module, start: torch.Tensor, x: torch.Tensor, y: torch.Tensor, norm, eps, step, steps):
    """Textbook PGD in float64 NumPy; only the gradient comes from torch, one image at a time."""
    model = model.double().eval()
    images = []
    for i in range(len(x)):
        clean, adv = x[i].double().numpy(), start[i].double().numpy()
        for _ in range(steps):
            leaf = torch.tensor(adv[None], requires_grad=True)
            nn.functional.cross_entropy(model(leaf), y[i : i + 1]).backward()
            g = leaf.grad[0].numpy()
            if norm == "linf":
                delta = np.clip(adv + step * np.sign(g) - clean, -eps, eps)
            else:
                delta = adv + step * g / np.sqrt((g**2).sum()) - clean
                delta *= min(1.0, eps / np.sqrt((delta**2).sum()))
            adv = np.clip(clean + delta, 0, 1)
        images.append(adv)
    model.float()
    return np.stack(images)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("norm", "eps", "step"), [("linf", 0.06, 0.02), ("l2", 0.5, 0.15)])
def test_pgd_is_textbook_pgd_from_every_start(start, norm, eps, step, net, x, y):
    threat = ThreatModel(norm, eps)
    begin = random_start(x, threat, start, generator())
    ours = pgd(net, x, y, threat=threat, steps=5, step_size=step, start=start, generator=generator())
    expected = reference_pgd(net, begin, x, y, norm, eps, step, 5)
    np.testing.assert_allclose(ours.numpy(), expected, atol=3e-6)


def test_every_start_is_drawn_as_its_papers_draw_it(x):
    threat = ThreatModel(eps=0.3)
    noise = {name: random_start(x, threat, name, generator()) - x for name in STARTS}
    assert noise["zero"].abs().max() == 0
    assert 0.0005 < noise["gauss"].std() < 0.002
    assert noise["uniform"].min() < -0.2 and noise["uniform"].max() > 0.2 and noise["uniform"].abs().max() <= 0.3 + 1e-6
    assert noise["pos_uniform"].min() > -1e-6 and noise["pos_uniform"].max() > 0.2
    clamped, free = x + noise["uniform_clamp"], x + noise["uniform"]
    assert clamped.min() >= -1e-6 and clamped.max() <= 1 + 1e-6
    assert free.min() < 0 and free.max() > 1  # the published attacks do not clamp before the first gradient


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_every_adversarial_image_lies_in_ball_and_box(start, mode, norm, steps, net, x, y):
    threat = ThreatModel(norm, 8 / 255)
    x_adv = pgd(net, x, y, threat=threat, steps=steps, start=start, mode=mode, generator=generator())
    assert threat.contains(x_adv, x).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    if norm == "linf":
        assert (x_adv - x).abs().max() <= 8 / 255 + 2**-23
    assert not x_adv.requires_grad


@pytest.mark.parametrize(("mode", "moves"), [("eval", False), ("train_frozen_stats", False), ("train", True)])
def test_batch_norm_statistics_move_in_train_mode_only(mode, moves, net, x, y):
    before = snapshot(net)
    pgd(net, x, y, steps=2, mode=mode, generator=generator())
    assert unchanged(net, before) is not moves
    assert net.bn.track_running_stats


def test_train_mode_attacks_use_batch_statistics(net, x, y):
    attacks = {mode: pgd(net, x, y, steps=3, mode=mode, generator=generator()) for mode in MODES}
    assert torch.equal(attacks["train"], attacks["train_frozen_stats"])
    assert not torch.equal(attacks["train"], attacks["eval"])


def test_a_submodule_frozen_on_purpose_stays_frozen(net, x, y):
    net.train()
    net.bn.eval()
    net.conv.weight.requires_grad_(False)
    net.linear.weight.grad = torch.ones_like(net.linear.weight)
    pgd(net, x, y, steps=1, generator=generator())
    assert net.training and not net.bn.training
    assert [p.requires_grad for p in net.conv.parameters()] == [False, True]
    assert torch.equal(net.linear.weight.grad, torch.ones_like(net.linear.weight))
    assert net.conv.bias.grad is None


def test_the_model_comes_back_whole_when_the_objective_fails(net, x, y):
    net.train()
    before = snapshot(net)

    def failing(logits, labels, x_adv):
        raise KeyboardInterrupt

    for mode in MODES:
        with pytest.raises(KeyboardInterrupt):
            pgd(net.eval() if mode == "eval" else net.train(), x, y, objective=failing, mode=mode)
        assert net.training is (mode != "eval") and all(p.requires_grad for p in net.parameters())
        assert net.bn.track_running_stats
    assert set(before) == set(net.state_dict())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_attack_is_the_same_in_every_gradient_context(context, net, x, y):
    expected = pgd(net, x, y, steps=3, generator=generator())
    with context():
        inner = pgd(net, x.clone(), y.clone(), steps=3, generator=generator())
    assert torch.equal(expected, inner)


def test_a_radius_and_step_per_image_equal_attacking_each_alone(net, x, y):
    eps = torch.linspace(0.01, 0.09, len(x))
    together = pgd(net, x, y, threat=ThreatModel(eps=eps), step_size=eps / 3, steps=4, start="zero")
    for i in range(len(x)):
        one = slice(i, i + 1)
        threat = ThreatModel(eps=float(eps[i]))
        alone = pgd(net, x[one], y[one], threat=threat, step_size=float(eps[i] / 3), steps=4, start="zero")
        assert torch.allclose(together[one], alone, atol=1e-6)


def loss_of(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return cross_entropy(net.eval()(x), y, x)


@pytest.mark.filterwarnings("ignore:the attack runs on the network itself")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_runs_the_body_only_and_still_attacks(precision, net, x, y):
    seen = []

    def watching(logits, labels, x_adv):
        seen.append((logits.dtype, x_adv.dtype))
        return cross_entropy(logits, labels, x_adv)

    x_adv = pgd(net, x, y, steps=5, precision=precision, objective=watching, generator=generator())
    assert set(seen) == {(torch.float32, torch.float32)} and x_adv.dtype == torch.float32
    full = pgd(net, x, y, steps=5, generator=generator())
    gain = loss_of(net, x_adv, y).mean() - loss_of(net, x, y).mean()
    assert gain > 0.8 * (loss_of(net, full, y).mean() - loss_of(net, x, y).mean())


def test_an_objective_may_send_its_gradient_through_a_second_network(net, x, y):
    teacher = Net(5).eval().requires_grad_(False)
    label = torch.arange(len(x)) % CLASSES

    def distance(logits, labels, x_adv):
        return (logits - teacher(x_adv)).square().sum(dim=1)

    x_adv = pgd(net, x, label, steps=1, step_size=0.01, start="zero", objective=distance)
    leaf = x.clone().requires_grad_()
    (net.eval()(leaf) - teacher(leaf)).square().sum().backward()
    assert torch.allclose(x_adv, (x + 0.01 * leaf.grad.sign()).clamp(0, 1), atol=1e-6)


def test_the_same_generator_gives_the_same_attack_and_the_global_one_is_untouched(net, x, y):
    state = torch.get_rng_state()
    one, two, other = (pgd(net, x, y, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_frozen_statistics_are_thawed_after_an_exception(net, x):
    net.train()
    before = snapshot(net)
    with pytest.raises(ZeroDivisionError), frozen_batch_norm_statistics(net):
        net(x)
        raise ZeroDivisionError
    assert net.bn.track_running_stats and unchanged(net, before)


def test_the_margin_objectives_are_their_formulas():
    logits = torch.tensor([[3.0, 1.0, 0.5, -1.0], [0.0, 2.0, 1.0, 5.0]])
    labels = torch.tensor([0, 1])
    cw, dlr = (OBJECTIVES[name](logits, labels, logits) for name in ("cw", "dlr"))
    assert cw.tolist() == pytest.approx([-2.0, 3.0])
    assert dlr.tolist() == pytest.approx([-2.0 / 2.5, 3.0 / 4.0])
    assert OBJECTIVES["dlr"](10 * logits + 3, labels, logits).tolist() == pytest.approx(dlr.tolist(), rel=1e-5)
    assert OBJECTIVES["cw"](100 * logits, labels, logits).max() == 50


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"x": "nan"}, "NaN"),
        ({"x": "high"}, "outside the box"),
        ({"x": "double"}, "float64"),
        ({"y": torch.tensor([-1] * 9)}, "labels"),
        ({"y": torch.tensor([CLASSES] * 9)}, f"label {CLASSES}"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, "one label per image"),
        ({"y": torch.zeros(9)}, "labels"),
        ({"steps": -1}, "steps is -1"),
        ({"step_size": -0.1}, "step_size is -0.1"),
        ({"step_size": float("nan")}, "step_size is nan"),
        ({"start": "unheard"}, "unheard"),
        ({"mode": "unheard"}, "unheard"),
        ({"precision": "int4"}, "int4"),
        ({"threat": ThreatModel(eps=torch.rand(4))}, "4 radii for 9 images"),
        ({"threat": 0.1}, "threat is 0.1"),
        ({"x": np.zeros((9, 3, 8, 8), np.float32)}, "x is a numpy array"),
        ({"y": [0] * 9}, "y is a value of type list"),
    ],
)
def test_wrong_arguments_are_named(change, names, net, x, y):
    images = {"nan": x.clone().fill_(float("nan")), "high": x + 1, "double": x.double()}
    arguments = {"x": x, "y": y, **change}
    if isinstance(arguments["x"], str):
        arguments["x"] = images[arguments["x"]]
    with pytest.raises(LtatError, match=names):
        pgd(net, **arguments)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"eps": -0.1}, "-0.1"),
        ({"eps": float("nan")}, "nan"),
        ({"eps": float("inf")}, "inf"),
        ({"eps": torch.tensor([0.1, -0.2])}, "-0.2"),
        ({"eps": torch.rand(2, 2)}, r"\(2, 2\)"),
        ({"eps": "8/255"}, "'8/255'"),
        ({"norm": "l1"}, "l1"),
        ({"eps": None}, "eps is None"),
        ({"eps": True}, "eps is True"),
        ({"eps": 8}, "give 8/255"),
        ({"eps": torch.tensor([0.1, 8.0])}, "give 8/255"),
        ({"box": (1.0, 0.0)}, "empty"),
        ({"box": 5}, "box is 5"),
        ({"box": (0.0, 0.5, 1.0)}, "box is"),
        ({"box": (0.0, float("nan"))}, "bound of the box is nan"),
        ({"norm": ["linf"]}, "unknown norm"),
    ],
)
def test_an_impossible_threat_model_is_refused(arguments, names):
    with pytest.raises(LtatError, match=names):
        ThreatModel(**arguments)


@pytest.mark.parametrize("eps", [np.float32(0.03), np.float64(0.03), np.array(0.03), torch.tensor(0.03), 0])
def test_a_radius_of_another_kind_of_number_becomes_a_float(eps):
    threat = ThreatModel(eps=eps, box=np.array([0, 1]))
    assert type(threat.eps) is float and threat.eps == float(eps)
    assert threat.box == (0.0, 1.0) and all(type(bound) is float for bound in threat.box)


def test_a_radius_is_looked_at_in_the_box_and_norm_it_is_given_for():
    assert ThreatModel(eps=8, box=(0, 255)).eps == ThreatModel("l2", eps=8).eps == 8.0


def test_numpy_numbers_attack_as_the_plain_ones_do(net, x, y):
    kinds = {"steps": (2, np.int64(2)), "step_size": (0.01, np.float64(0.01))}
    plain, other = ({name: pair[i] for name, pair in kinds.items()} for i in (0, 1))
    first, second = (pgd(net, x, y, **given, generator=generator()) for given in (plain, other))
    assert torch.equal(first, second)


def test_contains_tells_legal_images_from_illegal_ones():
    x = torch.full((4, 1, 2, 2), 0.5)
    x_adv = x.clone()
    x_adv[0] += 0.1
    x_adv[1] += 0.1001
    x_adv[2, 0, 0, 0] = float("nan")
    assert ThreatModel(eps=0.1).contains(x_adv, x).tolist() == [True, False, False, True]
    assert ThreatModel("l2", eps=0.2).contains(x_adv, x).tolist() == [True, False, False, True]
    wide = ThreatModel(eps=1.0)
    assert wide.contains(x + 0.6, x).tolist() == [False] * 4  # in the ball, not in the box


def test_images_of_other_channels_than_the_model_are_told():
    model = build_model("small", num_classes=5, in_channels=3)
    with pytest.raises(LtatError, match="3 channels and these have 1"):
        pgd(model, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": "3"}, "steps is '3'"),
        ({"step_size": "x"}, "step_size is 'x'"),
        ({"step_size": [0.1, 0.1]}, "step_size is"),
        ({"step_size": 2}, "step_size=2 is wider"),
        ({"steps": 10**18}, "steps is 1000000000000000000"),
    ],
)
def test_numbers_of_a_wrong_kind_are_told(wrong, named):
    x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    with pytest.raises(LtatError, match=named):
        pgd(torch.nn.Flatten(), x, y, **wrong)


def test_a_model_that_cuts_off_its_gradient_is_told():
    class Detached(torch.nn.Flatten):
        def forward(self, x):
            return super().forward(x).detach()

    with pytest.raises(LtatError, match="does not depend on the images"):
        pgd(Detached(), torch.rand(2, 3, 4, 4), torch.tensor([0, 1]))
