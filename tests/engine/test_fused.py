"""The fused operations of a working copy compute what the separate ones do, forward and backward."""

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ltat.engine import fused
from ltat.engine.fused import Geometry, fused_convolution, fused_norm, separately
from ltat.engine.fusion import fuse_convolutions, fuse_norms
from ltat.engine.working_copy import WorkingCopy
from ltat.models import Classifier, build_model
from tests.engine.norms import moved_from_identity

GEOMETRIES = (
    Geometry((1, 1), (1, 1), (1, 1), 1),
    Geometry((2, 2), (1, 1), (1, 1), 1),
    Geometry((1, 1), (0, 0), (1, 1), 1),
    Geometry((1, 1), (1, 1), (1, 1), 8),
    Geometry((2, 1), (2, 3), (2, 1), 2),
)


def tensors(geometry: Geometry, dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, ...]:
    """Images, residual, weight and bias."""
    x = torch.randn(3, 8, 9, 8, dtype=dtype).to(memory_format=layout)
    weight = (torch.randn(16, 8 // geometry.groups, 3, 3, dtype=dtype) / 8).to(memory_format=layout)
    residual = torch.randn(geometry.output_size(x, weight), dtype=dtype).to(memory_format=layout)
    return x, residual, weight, torch.randn(16, dtype=dtype)


def run(forward, x: Tensor, residual: Tensor | None) -> list[Tensor]:
    """The output, and its gradients after two readers have used it."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, residual) if tensor is not None]
    first, second = forward(leaves[0], leaves[1] if residual is not None else None)
    total = (first * first.detach().sin()).sum() + (second * second.detach().cos()).sum()
    return [first.detach(), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_and_gradients_are_those_of_the_separate_operations(geometry, relu, summed, dtype):
    torch.manual_seed(0)
    x, residual, weight, bias = tensors(geometry, dtype, torch.channels_last)
    residual = residual if summed else None

    def expected(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        y = F.conv2d(x, weight, bias, *geometry)
        y = y if residual is None else y + residual
        return (F.relu(y) if relu else y,) * 2

    mine = run(lambda x, r: fused_convolution(x, r, weight, bias, geometry, relu, 2), x, residual)
    exact = run(expected, x, residual)
    close = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}[dtype]
    for one, other in zip(mine, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=close, atol=close)
        assert one.shape == other.shape and one.dtype == other.dtype


def test_a_norm_adds_the_gradients_that_reach_its_input_on_another_way():
    torch.manual_seed(0)
    x, scale, shift = torch.randn(3, 8, 5, 5), torch.randn(8), torch.randn(8)
    weights = torch.randn(3, 3, 8, 5, 5)

    def total(first: Tensor, second: Tensor, shortcut: Tensor) -> Tensor:
        return sum((part * weight).sum() for part, weight in zip((first, second, shortcut), weights, strict=True))

    mine, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    along = (1, 8, 1, 1)
    y = F.relu(exact * scale.double().view(along) + shift.double().view(along))
    expected = torch.autograd.grad(total(y, y, exact), exact)[0]
    found = torch.autograd.grad(total(*fused_norm(mine, scale, shift, 2, 1)), mine)[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    only_shortcut = torch.autograd.grad(fused_norm(mine, scale, shift, 2, 1)[2].sum(), mine)[0]
    assert torch.equal(only_shortcut, torch.ones_like(x))


def test_a_residual_that_is_broadcast_is_added_as_it_was():
    torch.manual_seed(0)
    x, _, weight, bias = tensors(GEOMETRIES[0], torch.float64, torch.channels_last)
    residual = torch.randn(1, 16, 1, 1, dtype=torch.float64)
    mine = run(lambda x, r: fused_convolution(x, r, weight, bias, GEOMETRIES[0], True, 2), x, residual)
    exact = run(lambda x, r: (F.relu(F.conv2d(x, weight, bias, padding=1) + r),) * 2, x, residual)
    for one, other in zip(mine, exact, strict=True):
        torch.testing.assert_close(one, other)


def test_without_the_librarys_operation_the_separate_ones_run(monkeypatch):
    def absent(*arguments: object) -> Tensor:
        raise RuntimeError("not in this build")

    fused.library.cache_clear()
    monkeypatch.setattr(fused, "_onednn", absent)
    try:
        assert fused.library("cpu", torch.float32) is separately
    finally:
        fused.library.cache_clear()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("summed", [True, False])
def test_a_nan_passes_the_relu_and_does_not_become_a_zero(summed, layout):
    torch.manual_seed(0)
    x, residual, weight, bias = tensors(GEOMETRIES[0], torch.float32, layout)
    x[1, 2, 3, 4] = torch.nan
    arguments = (x, residual if summed else None, weight, bias, GEOMETRIES[0], True)
    torch.testing.assert_close(fused_convolution(*arguments, 1)[0], separately(*arguments), equal_nan=True)


def test_a_library_that_loses_a_nan_is_not_used(monkeypatch):
    fused.library.cache_clear()
    monkeypatch.setattr(fused, "_onednn", lambda *arguments: separately(*arguments).nan_to_num(0.0))
    try:
        assert fused.library("cpu", torch.float32) is separately
    finally:
        fused.library.cache_clear()


class Counted(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def one_step(network, x: Tensor) -> tuple[Tensor, Counter[str]]:
    """The input gradient, and the operators that it took."""
    leaf = x.clone().requires_grad_()
    with Counted() as counted:
        gradient = torch.autograd.grad(network(leaf).logsumexp(1).sum(), leaf)[0]
    return gradient, counted.calls


NETWORKS = ("resnet18", "preactresnet18", "mobilenetv2", "small")


@pytest.fixture(scope="module", params=NETWORKS)
def copied(request) -> tuple[str, nn.Module, WorkingCopy, Tensor]:
    torch.manual_seed(0)
    model = build_model(request.param, num_classes=5, in_channels=3).eval()
    moved_from_identity(model)
    return request.param, model, WorkingCopy(model), torch.rand(4, 3, 16, 16)


def test_every_convolution_of_our_networks_is_fused_and_no_pass_is_left_beside_it(copied):
    name, model, work, x = copied
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert work.fused == convolutions
    work(x)  # asks the library once what it has
    _, calls = one_step(work, x)
    assert calls["aten::convolution_backward"] == convolutions
    assert calls["ltat::affine_relu"] == work.kept
    separate = ("aten::relu", "aten::threshold_backward", "aten::native_batch_norm", "aten::add_", "aten::convolution")
    assert {each: calls[each] for each in separate if calls[each]} == {}
    without_relu = {"mobilenetv2": 13}.get(name, 0)  # outputs that a convolution and a shortcut read
    assert calls["aten::add"] == without_relu


def test_logits_and_gradients_in_single_precision_are_near_those_in_double(copied):
    _, model, work, x = copied
    exact = copy.deepcopy(model).double()
    torch.testing.assert_close(work(x).double(), exact(x.double()), rtol=1e-3, atol=1e-4)
    mine, expected = one_step(work, x)[0].double(), one_step(exact, x.double())[0]
    assert (mine - expected).norm() < 5e-3 * expected.norm()  # an activation near zero may fall on the other side


def test_logits_of_a_network_that_diverged_are_not_finite(copied):
    _, model, _, x = copied
    diverged = copy.deepcopy(model)
    next(module for module in diverged.modules() if isinstance(module, nn.Conv2d)).weight.data[0] = torch.nan
    assert WorkingCopy(diverged)(x).isnan().all()


class Odd(nn.Module):
    """What the fused operations must leave alone, or take care with."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.same = nn.Conv2d(4, 4, 3, padding="same")
        self.mirrored = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.a(x))
        kept = self.b(out)
        total = kept + 1.0  # no tensor is added
        total = total + self.mirrored(self.same(out))
        total += self.c(total.clone())  # a sum in place whose first operand is not the convolution
        total = self.relu(self.norm(total)) + total
        doubled = self.a(total)
        return F.relu(doubled + doubled) * kept


def test_what_the_fused_operations_do_not_fit_computes_what_it_did():
    torch.manual_seed(0)
    model = Odd().eval().requires_grad_(False)
    nn.init.uniform_(model.norm.running_var, 0.5, 2)
    x = torch.randn(2, 4, 6, 6)
    expected = one_step(lambda x: model(x).mean((2, 3)), x)[0]
    trunk = fx.symbolic_trace(copy.deepcopy(model))
    assert fuse_norms(trunk) == ["norm"]
    norm, affine = model.norm, trunk.norm
    affine.scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    affine.shift = norm.bias - norm.running_mean * affine.scale
    fuse_convolutions(trunk)
    found = one_step(lambda x: trunk(x).mean((2, 3)), x)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_second_derivative_is_refused_and_not_silently_wrong():
    torch.manual_seed(0)
    work, x = WorkingCopy(build_model("small", num_classes=5).eval()), torch.rand(2, 3, 8, 8, requires_grad=True)
    gradient = torch.autograd.grad(work(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()


class Traced(Classifier):
    """A classifier whose trunk is ``between``."""

    def __init__(self, between: Callable[["Traced", Tensor], Tensor]) -> None:
        super().__init__(4, 4, None)
        self.between = between
        self.a, self.b = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 4)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def trunk(self, x: Tensor) -> Tensor:
        return self.between(self, x).mean((2, 3))


def unused_relu(net: Traced, x: Tensor) -> Tensor:
    y = x + 0.1
    F.relu(net.norm(y))
    return net.a(y) * y


def norm_whose_weight_is_read(net: Traced, x: Tensor) -> Tensor:
    return F.relu(net.norm(x + 0.1)) * net.norm.weight.mean()


def number_as_residual(net: Traced, x: Tensor) -> Tensor:
    return F.relu(net.a(x) + x.shape[2])


def residual_in_double(net: Traced, x: Tensor) -> Tensor:
    return F.relu(net.a(x) + x.double()).float()


def single_images(net: Traced, x: Tensor) -> Tensor:
    return torch.stack([F.relu(net.a(x[0])), F.relu(net.b(x[1]) + x[1])])


def written_function(net: Traced, x: Tensor) -> Tensor:
    y = net.a(x)
    z = F.leaky_relu_(y, 0.1)
    return y * y + 2 * z


def written_view(net: Traced, x: Tensor) -> Tensor:
    y = net.a(x)
    z = y.flatten(2).mul_(2)
    return y + net.b(y) + z.view_as(y)


TRAPS = (
    unused_relu,
    norm_whose_weight_is_read,
    number_as_residual,
    residual_in_double,
    single_images,
    written_function,
    written_view,
)


@pytest.mark.parametrize("between", TRAPS)
def test_a_trunk_that_is_almost_fused_has_the_logits_and_gradients_of_the_network(between):
    torch.manual_seed(0)
    model, x = Traced(between).eval().requires_grad_(False), torch.rand(2, 4, 6, 6)
    work = WorkingCopy(model)
    torch.testing.assert_close(work(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one_step(work, x)[0], one_step(model, x)[0], rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(work(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_concatenation_along_the_channels_does_not_count_as_an_operation_in_place():
    model = Traced(lambda net, x: torch.cat([net.a(x), x], 1)[:, :4])
    assert WorkingCopy(model).fused == 1
