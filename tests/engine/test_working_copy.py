"""The copy that attacks run on computes what the network computes, at every step of a training."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ltat.engine.network import StepNetwork
from ltat.engine.tracing import Untraceable
from ltat.engine.working_copy import WorkingCopy
from ltat.errors import LtatError
from ltat.models import Classifier, build_model
from ltat.models.base import global_average
from ltat.models.heads import put_head
from tests.engine.norms import moved_from_identity

NORMALIZE = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


def lived_in(name: str, size: int = 16) -> tuple[Classifier, torch.Tensor]:
    """A network whose batch norms are far from the identity, in float64, and images."""
    torch.manual_seed(0)
    model = build_model(name, num_classes=5, in_channels=3, normalize=NORMALIZE).double()
    x = torch.rand(4, 3, size, size, dtype=torch.float64)
    moved_from_identity(model, 0.5)
    return model.eval(), x


def change(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and tensor.dim() > 0:
                tensor.mul_(1.25)


@pytest.mark.parametrize(
    ("name", "folded"), [("resnet18", 20), ("preactresnet18", 8), ("mobilenetv2", 57), ("resnet8-s2", 9), ("small", 3)]
)
def test_logits_and_input_gradients_are_the_networks_after_every_refresh(name: str, folded: int):
    model, x = lived_in(name)
    work = WorkingCopy(model)
    assert len(work.folded.convs) == folded
    for _ in range(3):
        leaves = x.clone().requires_grad_(), x.clone().requires_grad_()
        mine, expected = work.refresh()(leaves[0]), model(leaves[1])
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-11)
        gradients = [
            torch.autograd.grad(z.square().sum(), leaf)[0] for z, leaf in ((mine, leaves[0]), (expected, leaves[1]))
        ]
        torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-10)
        change(model)
        assert not torch.allclose(work(x), model(x), rtol=1e-3)


def test_a_refresh_writes_into_the_same_memory():
    model, _ = lived_in("small")
    work = WorkingCopy(model, torch.bfloat16)
    places = [tensor.data_ptr() for tensor in [*work.trunk.parameters(), *work.trunk.buffers()]]
    change(model)
    work.refresh()
    assert places == [tensor.data_ptr() for tensor in [*work.trunk.parameters(), *work.trunk.buffers()]]
    assert work.trunk.conv1.weight.dtype == torch.bfloat16


def test_the_network_is_left_alone_and_its_training_mode_does_not_matter():
    model, x = lived_in("small")
    expected = model(x)
    model.train()
    before = copy.deepcopy(model.state_dict())
    torch.testing.assert_close(WorkingCopy(model)(x), expected, rtol=1e-9, atol=1e-11)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_weights_are_folded_before_they_are_rounded():
    model, _ = lived_in("small")
    work = WorkingCopy(model, torch.bfloat16)
    norm = model.bn1
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    once = (model.conv1.weight * factor.view(-1, 1, 1, 1)).bfloat16()
    assert torch.equal(work.trunk.conv1.weight, once)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_last_layer_stays_in_full_precision_and_the_networks_own(precision: str):
    model, x = lived_in("small")
    model, x = model.float(), x.float()
    put_head(model, "cosine")
    seen = []
    network = StepNetwork(model, precision)
    work = network.folded(x)
    handle = model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].dtype))
    logits = work(x)
    handle.remove()
    assert seen == [torch.float32] and logits.dtype == torch.float32
    assert torch.allclose(logits, model(x), atol=0.05) and not torch.equal(logits, model(x))


class Branching(Classifier):
    """A convolution whose output is read twice, one that two norms share, and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__(3, 3, None)
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2, self.bn3 = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.BatchNorm2d(4, affine=False),
        )
        self.conv3, self.bn4 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.gain = nn.Parameter(torch.tensor([1.5, 0.5, 2.0, 1.0]).view(1, 4, 1, 1))
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(4, 3)

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        read_twice = self.conv1(x)
        out = F.relu(self.bn1(read_twice)) + read_twice
        out = self.bn3(self.conv2(self.bn2(self.conv2(out)))) * self.gain
        return global_average(self.drop(self.bn4(self.conv3(out))))


class Hesitant(Branching):
    """One whose trunk looks at its numbers."""

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        return super().trunk(x if x.mean() > 0.5 else 1 - x)


def test_only_a_convolution_that_one_norm_alone_reads_is_folded():
    torch.manual_seed(0)
    model = Branching().double().eval()
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    for norm in (model.bn1, model.bn2, model.bn3, model.bn4):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    work = WorkingCopy(model.train())  # dropout and batch statistics must not get into the copy
    model.eval()
    assert len(work.folded.convs) == 1 and "1 batch norms folded, 3 kept" in str(work)
    change(model)
    torch.testing.assert_close(work.refresh()(x), model(x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("model", "why"),
    [(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "no convolution"), (Hesitant(), "cannot be traced")],
)
def test_a_network_that_cannot_be_copied_is_attacked_as_it_stands_and_says_why(model: nn.Module, why: str):
    x = torch.rand(2, 3, 8, 8)
    with pytest.raises(Untraceable, match=why):
        WorkingCopy(model)
    network = StepNetwork(model.eval(), "bf16")
    assert network.folded(x) is network and why in network.describe_folded(x)


def test_a_copied_wrapper_brings_its_own_copy_up_to_date():
    model, x = lived_in("small")
    network = StepNetwork(model)
    network.folded(x)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        change(twin.model)
        torch.testing.assert_close(twin.folded(x)(x), twin.model(x), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(network.folded(x)(x), model(x), rtol=1e-9, atol=1e-11)


def test_a_wrapper_is_copied_also_where_its_network_can_no_longer_be():
    model, x = lived_in("small")
    network = StepNetwork(model)
    network.folded(x)
    model.conv2.register_forward_hook(lambda module, inputs, output: output * 0)
    twin = copy.deepcopy(network)
    assert twin.folded(x) is twin and torch.equal(twin(x), network(x))


def test_hooks_are_not_lost():
    model, x = lived_in("small")
    network = StepNetwork(model)
    assert isinstance(network.folded(x), WorkingCopy)
    model.conv2.register_forward_hook(lambda module, inputs, output: output * 0)
    assert network.folded(x) is network and "hooks" in network.describe_folded(x)
    assert torch.equal(network.folded(x)(x), model(x))


def test_a_network_moved_to_another_dtype_gets_a_new_copy():
    model, x = lived_in("small")
    network = StepNetwork(model)
    first = network.folded(x)
    assert network.folded(x) is first
    model.float()
    assert network.folded(x) is not first and network.folded(x)(x.float()).dtype == torch.float32


def test_the_copy_is_no_part_of_what_is_saved_or_trained():
    model, x = lived_in("small")
    network = StepNetwork(model)
    names = list(network.state_dict())
    network.folded(x)
    assert list(network.state_dict()) == names
    assert sum(1 for _ in network.parameters()) == sum(1 for _ in model.parameters())


def test_images_too_small_for_the_network_are_still_refused():
    model, _ = lived_in("small")
    with pytest.raises(LtatError, match="5x5"):
        WorkingCopy(model)(torch.rand(1, 3, 3, 3, dtype=torch.float64))


@pytest.mark.parametrize("alter", ["forward", "trunk", "backward hook", "conv"])
def test_patched_methods_and_backward_hooks_are_not_lost(alter):
    model, x = lived_in("small")
    network = StepNetwork(model)
    assert isinstance(network.folded(x), WorkingCopy)
    if alter == "backward hook":
        model.conv2.register_full_backward_pre_hook(lambda module, grad: grad)
    elif alter == "conv":
        model.conv2.forward = lambda x: x
    else:
        setattr(model, alter, lambda x: x)
    assert network.folded(x) is network


def test_a_batch_norm_without_bias_is_kept_as_it_is():
    model, x = lived_in("small")
    norm = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.bias = None
    assert WorkingCopy(model).kept == 1
    assert torch.allclose(WorkingCopy(model)(x), model.eval()(x))


class Sharing(Branching):
    """Two convolutions of one weight, and one whose weight the trunk also reads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv2.weight = self.conv3.weight

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x))) * self.conv1.weight.mean()
        return global_average(self.bn4(self.conv3(F.relu(self.bn2(self.conv2(out))))))


def test_a_weight_that_others_read_too_is_not_folded():
    torch.manual_seed(0)
    model, x = Sharing().double().eval(), torch.rand(4, 3, 8, 8, dtype=torch.float64)
    for norm in (model.bn1, model.bn2, model.bn4):
        nn.init.uniform_(norm.running_var, 0.5, 2)
    work = WorkingCopy(model)
    change(model)
    assert not work.folded.convs
    torch.testing.assert_close(work.refresh()(x), model(x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("part", ["conv2", "bn2", "normalize", "linear"])
def test_a_part_that_was_replaced_is_not_attacked_in_its_old_form(part: str):
    model, x = lived_in("small")
    network = StepNetwork(model)
    network.folded(x)
    other = copy.deepcopy(getattr(model, part))
    change(other)
    setattr(model, part, other)
    torch.testing.assert_close(network.folded(x)(x), model(x), rtol=1e-9, atol=1e-11)


def test_a_copy_made_in_inference_mode_is_brought_up_to_date_outside():
    model, x = lived_in("small")
    network = StepNetwork(model)
    with torch.inference_mode():
        network.describe_folded(x)
    change(model)
    torch.testing.assert_close(network.folded(x)(x), model(x), rtol=1e-9, atol=1e-11)
