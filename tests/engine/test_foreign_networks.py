"""Networks from outside ltat: their copies compute what they compute, or they are not copied, with the reason."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ltat.attacks import ThreatModel, pgd
from ltat.attacks.captured import why_not_captured
from ltat.attacks.objectives import cross_entropy
from ltat.engine.graphs import Graphs
from ltat.engine.network import StepNetwork
from ltat.engine.tracing import Untraceable
from ltat.engine.trial import tried_copy
from ltat.engine.working_copy import WorkingCopy
from ltat.errors import LtatError
from ltat.models.base import Normalize
from tests.attacks.recording import Recorder
from tests.engine.norms import moved_from_identity

CLASSES = 5
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Standardized(nn.Module):
    """Normalises inside, by parts that only a trace of the whole forward meets."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))
        self.network = network

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        x = (x - self.mean[:, None, None]) / self.std[:, None, None]
        return self.network(x if scale is None else x * scale)


class NormAct(nn.BatchNorm2d):
    """A batch norm with its activation, and one function for both modes."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        moving = (self.running_mean, self.running_var)
        return self.act(F.batch_norm(x, *moving, self.weight, self.bias, self.training, self.momentum, self.eps))


class Modern(nn.Module):
    """What recent networks have: squeeze and excitation, sums in place, dropped paths, views."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), NormAct(8)
        self.conv, self.bn = nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Linear(8, 4), nn.Linear(4, 8)
        self.gamma = nn.Parameter(torch.rand(8, 1, 1))
        self.pool, self.head = nn.AdaptiveAvgPool2d(4), nn.Linear(128, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x = self.norm(self.stem(x))
        x = F.relu(self.bn(self.conv(x)))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]
        x = F.dropout(x * self.gamma, 0.5, self.training)
        x += shortcut
        return self.head(self.pool(x).view(x.size(0), -1))


def all_convolutional() -> nn.Module:
    return nn.Sequential(
        Normalize(MEAN, STD, 3),
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, CLASSES, 3, 2, 1),
        nn.BatchNorm2d(CLASSES),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def plain() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten())
    return nn.Sequential(*layers, nn.LazyLinear(CLASSES))


def resnet() -> nn.Module:
    block = torchvision.models.resnet.BasicBlock
    return Standardized(torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=CLASSES))


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(8, (2, 2), 16, num_classes=CLASSES)


def mobilenet() -> nn.Module:
    return torchvision.models.MobileNetV2(CLASSES, 0.25, inverted_residual_setting=[[1, 32, 1, 1], [6, 32, 2, 2]])


NETWORKS = {  # and how many batch norms are folded and kept, and convolutions fused
    "resnet": (resnet, 12, 0, 12),
    "densenet": (densenet, 5, 6, 10),
    "mobilenet": (mobilenet, 10, 0, 10),
    "modern": (Modern, 1, 1, 2),
    "plain": (plain, 1, 0, 1),
    "all-convolutional": (all_convolutional, 2, 0, 2),
}


def lived_in(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = build().eval()
    model(torch.rand(1, 3, 16, 16))
    moved_from_identity(model)
    return model


@pytest.fixture(scope="module", params=NETWORKS)
def foreign(request) -> tuple[str, nn.Module, Tensor]:
    return request.param, lived_in(NETWORKS[request.param][0]), torch.rand(2, 3, 16, 16)


def gradient(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(network(leaf).logsumexp(1).sum(), leaf)[0]


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(1.25)


def test_norms_are_folded_and_convolutions_fused_as_in_ours(foreign):
    name, model, x = foreign
    work = tried_copy(model, x)
    assert (len(work.folded.convs), work.kept, work.fused) == NETWORKS[name][1:]
    assert work.num_classes == CLASSES and not any(module.training for module in model.modules())


def test_in_double_the_copy_is_the_network_after_every_refresh(foreign):
    _, model, x = foreign
    model, x = copy.deepcopy(model).double().train(), x.double()
    work = WorkingCopy(model)
    for _ in range(2):
        model.eval()
        torch.testing.assert_close(work.refresh()(x), model(x), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(gradient(work, x), gradient(model, x), rtol=1e-7, atol=1e-10)
        change(model)
        assert not torch.allclose(work(x), model(x), rtol=1e-3)


def test_in_single_precision_logits_and_gradients_are_near_those_in_double(foreign):
    _, model, x = foreign
    work, exact = WorkingCopy(model), copy.deepcopy(model).double()
    torch.testing.assert_close(work(x).double(), exact(x.double()), rtol=1e-3, atol=1e-4)
    mine, expected = gradient(work, x).double(), gradient(exact, x.double())
    assert (mine - expected).norm() < 5e-3 * expected.norm()


def test_in_half_precision_the_logits_are_fp32_and_no_worse_than_by_autocast(foreign):
    _, model, x = foreign
    exact = copy.deepcopy(model).double()(x.double())
    network = StepNetwork(model, "bf16")
    work = network.folded(x)
    assert isinstance(work, WorkingCopy) and work(x).dtype == torch.float32
    assert (work(x) != work(x).bfloat16()).any()
    mine, autocast = ((answer(x) - exact).norm() / exact.norm() for answer in (work, network))
    assert 0 < mine < max(0.01, 1.5 * autocast)
    exact = gradient(copy.deepcopy(model).double(), x.double())
    mine, autocast = ((gradient(answer, x) - exact).norm() / exact.norm() for answer in (work, network))
    assert mine < max(0.1, 1.5 * autocast)


def test_images_are_normalised_before_they_are_rounded():
    model = Standardized(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(768, CLASSES))).eval()
    with torch.no_grad():
        model.network[0].weight.copy_(torch.eye(3)[:, :, None, None])
        model.network[0].bias.zero_()
    work, x, seen = WorkingCopy(model, torch.bfloat16), torch.rand(2, 3, 16, 16), []
    work.trunk.network.network.get_submodule("2").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    work(x)
    once = ((x - model.mean[:, None, None]) / model.std[:, None, None]).bfloat16()
    assert torch.equal(seen[0], once.float().flatten(1))


def test_a_direct_attack_runs_on_the_copy_and_stays_as_strong(recwarn):
    model = lived_in(resnet)
    x, y = torch.rand(8, 3, 16, 16), torch.arange(8) % CLASSES
    threat, losses = ThreatModel(eps=0.05), {}
    for how in ({}, {"fold": True}, {"precision": "bf16"}):
        drawn = torch.Generator().manual_seed(0)
        x_adv = pgd(model, x, y, threat=threat, steps=5, start="uniform", generator=drawn, **how)
        assert threat.contains(x_adv, x).all()
        losses[*how] = F.cross_entropy(model(x_adv), y).item()
    gain = losses[()] - F.cross_entropy(model(x), y).item()
    assert not recwarn.list and gain > 0
    assert abs(losses["fold",] - losses[()]) < 0.02 * gain and abs(losses["precision",] - losses[()]) < 0.2 * gain


# --- what is not copied -------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A convolution and a linear layer, and in between whatever is asked for."""

    def __init__(self, between: Callable[["Odd", Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, CLASSES)
        self.between = between
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self, self.conv(x)).mean((2, 3)))


def looks(net: Odd, x: Tensor) -> Tensor:
    return x if x.mean() > 0 else -x


def drops(net: Odd, x: Tensor) -> Tensor:
    return F.dropout(x)


def batch_statistics(net: Odd, x: Tensor) -> Tensor:
    return F.batch_norm(x, net.bn.running_mean, net.bn.running_var, training=True)


def other_branch(net: Odd, x: Tensor) -> Tensor:
    return 2 * x if isinstance(x, Tensor) else x


def random_at_the_trace(net: Odd, x: Tensor) -> Tensor:
    return x * torch.rand(8, 1, 1)


def widens(net: Odd, x: Tensor) -> Tensor:
    return net.second(x.float())


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x)


class Always(nn.Dropout):
    def train(self, mode: bool = True) -> "Always":
        return super().train(True)


class Hooked(Odd):
    def __init__(self) -> None:
        super().__init__(lambda net, x: x)
        self.conv.register_forward_hook(lambda module, inputs, output: 2 * output)


REFUSED = [
    (Odd(looks), "cannot be traced: symbolically traced variables cannot be used"),
    (Odd(drops), "calls dropout with training=True"),
    (Odd(batch_statistics), "calls batch_norm with training=True"),
    (Odd(other_branch), "other logits"),
    (Odd(random_at_the_trace), "other logits"),
    (Odd(lambda net, x: net.noise(x), noise=Random()), "other logits"),
    (Odd(lambda net, x: net.drop(x), drop=Always()), "keeps network.drop in training mode"),
    (Odd(widens, second=nn.Conv2d(8, 8, 1)), "the copy of Odd fails on images"),
    (Hooked(), "hooks"),
    (nn.Sequential(nn.Flatten(), nn.Linear(768, CLASSES)), "no convolution"),
    (nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.ReLU()), "returns no logits"),
    (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3).double()), "parameters of 2 devices and dtypes"),
    (nn.Flatten(), "no parameters"),
]


@pytest.mark.parametrize(("model", "why"), REFUSED)
def test_what_a_copy_would_not_compute_is_attacked_as_it_stands_and_that_is_said(model: nn.Module, why: str):
    x = torch.rand(2, 3, 16, 16)
    model.eval()
    with pytest.raises(Untraceable, match=why):
        tried_copy(model, x, torch.bfloat16)
    network = StepNetwork(model, "bf16")
    assert network.folded(x) is network and why in network.describe_folded(x)


def sum_in_place_that_others_see(net: Odd, x: Tensor) -> Tensor:
    y = z = x * 2
    z += x
    return y * z


def shapes_in_place(net: Odd, x: Tensor) -> Tensor:
    n = x.size(1)
    n *= 2
    return x * n


@pytest.mark.parametrize("between", [sum_in_place_that_others_see, shapes_in_place])
def test_a_sum_in_place_stays_one(between):
    torch.manual_seed(0)
    model, x = Odd(between).eval(), torch.rand(2, 3, 8, 8)
    work = tried_copy(model, x)
    torch.testing.assert_close(work(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient(work, x), gradient(model, x), rtol=1e-4, atol=1e-6)


class Centred(Odd):
    """One that normalises in place, and reads the tensor that it wrote into by its old name."""

    def forward(self, x: Tensor) -> Tensor:
        images = x.clone()
        images.sub_(0.5)
        return super().forward(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_are_rounded_after_the_last_write_into_them(dtype):
    torch.manual_seed(0)
    model, x = Centred(lambda net, x: F.relu(net.bn(x))).eval(), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(WorkingCopy(model, dtype)(x), model(x), rtol=0.02, atol=0.02)


def times_alpha(net: Odd, x: Tensor) -> Tensor:
    return x * net.alpha


def plus_mapped_statistics(net: Odd, x: Tensor) -> Tensor:
    return x + net.bn.running_var.sqrt()[:, None, None]


def test_a_number_that_a_trace_froze_makes_a_new_copy_and_what_is_computed_from_a_buffer_follows_it():
    x = torch.rand(2, 3, 8, 8)
    model = Odd(times_alpha).eval()
    model.alpha = 2.0
    network = StepNetwork(model)
    first = network.folded(x)
    assert network.folded(x) is first
    model.alpha = 3.0
    torch.testing.assert_close(network.folded(x)(x), model(x), rtol=1e-4, atol=1e-5)
    model = Odd(plus_mapped_statistics).eval()
    network = StepNetwork(model)
    first = network.folded(x)
    model.bn.running_var.fill_(9.0)
    assert network.folded(x) is first
    torch.testing.assert_close(first(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_part_that_was_moved_to_another_dtype_ends_the_copy():
    model, x = lived_in(plain), torch.rand(2, 3, 16, 16)
    network = StepNetwork(model)
    assert network.folded(x) is not network
    model[0].double()
    assert network.folded(x) is network and "2 devices and dtypes" in network.describe_folded(x)


def test_a_copy_of_the_copy_knows_what_the_trial_has_found():
    model, x = lived_in(plain), torch.rand(2, 3, 16, 16)
    work = tried_copy(model, x, torch.bfloat16)
    twin = copy.deepcopy(work)
    assert twin.num_classes == CLASSES and torch.equal(twin(x), work(x))


def test_the_trial_neither_draws_from_the_global_generator_nor_changes_the_network():
    model, x = lived_in(plain).train(), torch.rand(2, 3, 16, 16)
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with torch.inference_mode():
        work = tried_copy(model, x, torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), drawn) and all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert gradient(work, x).isfinite().all()


def test_its_attack_is_captured_where_it_has_a_copy_and_checks_labels_before_a_replay():
    model, recorder = lived_in(plain), Recorder()
    network = StepNetwork(model, "bf16", graphs=Graphs(recorder))
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    assert "has no working copy" in why_not_captured(network, cross_entropy)
    how = {"threat": ThreatModel(eps=0.1), "steps": 3, "precision": "bf16"}

    def attack(attacked: nn.Module, y: Tensor = y) -> Tensor:
        return pgd(attacked, x, y, generator=torch.Generator().manual_seed(1), **how)

    for _ in range(2):
        assert torch.equal(attack(network), attack(StepNetwork(model, "bf16")))
        change(model)
    assert recorder.captured == 1 and why_not_captured(network, cross_entropy) is None
    with pytest.raises(LtatError, match="label 5"):
        attack(network, y + 2)
