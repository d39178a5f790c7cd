"""The published WideResNet with SiLU: another padding, order or activation than its weights were trained with."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ltat.models import load_published
from ltat.models.silu_wideresnet import SiluWideResNet

EPS = 1e-5  # of batch norm


def miniature(**settings) -> SiluWideResNet:
    return SiluWideResNet(**({"num_classes": 5, "depth": 10, "widen": 1} | settings)).eval()


def random_state(model: SiluWideResNet) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.rand(value.shape, generator=generator) + 0.5 if name.endswith("running_var")
        else value if not value.is_floating_point()
        else torch.randn(value.shape, generator=generator) * 0.3
        for name, value in model.state_dict().items()
    }  # fmt: skip


def by_formula(state: dict[str, Tensor], x: Tensor, strides: tuple[int, ...] = (1, 2, 2)) -> Tensor:
    """The logits, from the definition: swish(z) = z / (1 + e^−z), and the padding ``SAME`` of a 3x3 window."""
    state = {name: value.double() for name, value in state.items()}

    def norm(name: str, z: Tensor) -> Tensor:
        weight, bias, mean, var = (
            state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / (var + EPS).sqrt()
        return z * scale[:, None, None] + (bias - mean * scale)[:, None, None]

    def swish(z: Tensor) -> Tensor:
        return z / (1 + (-z).exp())

    def same(name: str, z: Tensor, stride: int) -> Tensor:
        size = z.shape[-1]
        missing = max(0, (-(-size // stride) - 1) * stride + 3 - size)  # of which the smaller half goes in front
        before, after = missing // 2, missing - missing // 2
        return F.conv2d(F.pad(z, (before, after, before, after)), state[f"{name}.weight"], stride=stride)

    z = same("init_conv", x.double(), 1)
    for group, stride in enumerate(strides):
        block = f"layer.{group}.block.0"
        active = swish(norm(f"{block}.batchnorm_0", z))
        out = same(f"{block}.conv_1", swish(norm(f"{block}.batchnorm_1", same(f"{block}.conv_0", active, stride))), 1)
        shortcut = state.get(f"{block}.shortcut.weight")
        z = out + (z if shortcut is None else F.conv2d(active, shortcut, stride=stride))
    return swish(norm("batchnorm", z)).mean((2, 3)) @ state["logits.weight"].T + state["logits.bias"]


def test_the_logits_are_those_of_the_definition():
    model, x = miniature().double(), torch.rand(3, 3, 32, 32)
    model.load_state_dict(random_state(model))
    with torch.no_grad():
        torch.testing.assert_close(model(x.double()), by_formula(model.state_dict(), x), rtol=1e-10, atol=1e-10)


def test_a_published_file_loads_in_its_wrapper_with_the_normalisation_it_holds(tmp_path):
    state = random_state(miniature())
    constants = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in (state | constants).items()}}, tmp_path / "w.pt"
    )
    model, x = load_published(miniature(), tmp_path / "w.pt").eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x).double(), by_formula(state, (x - 0.5) / 0.25), rtol=1e-4, atol=1e-5)
