"""Half precision stays inside the network's body."""

import pytest
import torch
from torch import nn

from ltat.engine.network import StepNetwork, features_and_logits
from ltat.errors import LtatError
from ltat.models import build_model


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("small", num_classes=10, in_channels=1).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_last_layer_does_not_round_the_logits_to_half(precision, dtype, model, x):
    logits = StepNetwork(model, precision)(x)
    assert logits.dtype == torch.float32
    assert (logits != logits.to(dtype).float()).float().mean() > 0.5
    assert torch.allclose(logits, model(x), atol=0.05) and not torch.equal(logits, model(x))


def test_the_body_does_run_in_half_precision(model, x):
    seen = []
    model.conv2.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    StepNetwork(model, "bf16")(x)
    StepNetwork(model, "fp32")(x)
    assert seen == [torch.bfloat16, torch.float32]


def test_full_precision_changes_nothing_even_inside_anothers_autocast(model, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, rounded = StepNetwork(model, "fp32")(x), model(x)
    assert torch.equal(inside, model(x)) and not torch.equal(rounded.float(), model(x))


def test_any_other_module_runs_whole_and_its_logits_are_cast(x):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    logits = StepNetwork(plain, "bf16")(x)
    assert logits.dtype == torch.float32 and torch.equal(logits, logits.bfloat16().float())


def test_gradients_reach_the_images_and_the_weights_in_fp32(model, x):
    leaf = x.clone().requires_grad_()
    StepNetwork(model.train(), "bf16")(leaf).square().sum().backward()
    assert leaf.grad.dtype == torch.float32 and leaf.grad.abs().sum() > 0
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_features_come_wide_and_with_the_logits_of_an_ordinary_forward(precision: str, model, x):
    network = StepNetwork(model, precision)
    features, logits = features_and_logits(network, x)
    assert features.dtype == torch.float32 and torch.equal(logits, network(x))
    assert torch.equal(model.classifier(features), logits)
    assert torch.allclose(features, features_and_logits(model, x)[0], atol=0.05)


def test_a_module_without_known_features_is_refused():
    with pytest.raises(LtatError, match="Linear"):
        features_and_logits(nn.Linear(3, 2), torch.zeros(1, 3))


def test_an_unknown_precision_is_named(model):
    with pytest.raises(LtatError, match="int4"):
        StepNetwork(model, "int4")


def test_a_network_wrapped_once_more_by_an_attack_keeps_its_last_layer_exact(model, x):
    once = StepNetwork(model, "bf16")
    assert torch.equal(StepNetwork(once, "bf16")(x), once(x))
