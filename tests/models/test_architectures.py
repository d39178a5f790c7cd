import hashlib
import math

import pytest
import torch
from torch import nn

from ltat.errors import LtatError
from ltat.models import MODELS, build_model

# Trainable parameters at 10 classes and 3 channels, as the published implementations count them.
PARAMETERS = {
    "resnet18": 11_173_962,
    "preactresnet18": 11_172_170,
    "wrn34-10": 46_160_474,
    "wrn28-10": 36_479_194,
    "wrn28-10-silu": 36_479_194,
    "mobilenetv2": 2_296_922,
    "resnet8-s2": 78_042,
    "small": 26_266,
}
# Names every published checkpoint of the family has, and how many entries the state dict holds.
PUBLISHED_NAMES = {
    "resnet18": (122, ["conv1.weight", "bn1.running_var", "layer1.1.conv2.weight", "layer4.0.shortcut.0.weight",
                       "layer4.0.shortcut.1.running_mean", "linear.bias"]),
    "preactresnet18": (107, ["conv1.weight", "layer1.0.bn1.weight", "layer2.0.shortcut.0.weight", "bn.running_var",
                             "linear.weight"]),
    "wrn34-10": (191, ["conv1.weight", "block1.layer.0.convShortcut.weight", "block3.layer.4.bn2.running_mean",
                       "bn1.weight", "fc.bias"]),
    "wrn28-10": (155, ["conv1.weight", "block1.layer.0.convShortcut.weight", "block3.layer.3.bn2.running_mean",
                       "bn1.weight", "fc.bias"]),
    "wrn28-10-silu": (155, ["init_conv.weight", "layer.0.block.0.shortcut.weight", "layer.2.block.3.batchnorm_1.bias",
                            "layer.1.block.2.conv_0.weight", "batchnorm.running_mean", "logits.bias"]),
    "mobilenetv2": (344, ["conv1.weight", "layers.0.shortcut.1.bias", "layers.16.conv3.weight", "bn2.running_mean",
                          "linear.bias"]),
}  # fmt: skip
NAME_HASHES = {
    "resnet18": "15e99edfd6f789c7",
    "preactresnet18": "9d9b948d8e2661b5",
    "wrn34-10": "f880a7bf14acacbe",
    "wrn28-10": "733853da8aaa8952",
    "wrn28-10-silu": "cb9a7ceb183b54b4",  # as of DMWideResNet in RobustBench 1.1.1
    "mobilenetv2": "6e254c358dc3bb9c",
}


def skeleton(name, **keywords):
    with torch.device("meta"):
        return build_model(name, **({"num_classes": 10} | keywords))


@pytest.mark.parametrize("name", MODELS)
def test_parameter_count_is_the_known_one(name):
    assert sum(p.numel() for p in skeleton(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_published_checkpoints_find_their_names(name):
    size, some = PUBLISHED_NAMES[name]
    state = skeleton(name).state_dict()
    assert len(state) == size
    assert set(some) <= state.keys()


@pytest.mark.parametrize("name", NAME_HASHES)
def test_no_name_or_shape_changes_unseen(name):
    lines = [f"{key} {tuple(value.shape)}" for key, value in skeleton(name).state_dict().items()]
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16] == NAME_HASHES[name]


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_any_channels_and_sizes_give_logits(name, channels, size):
    model = skeleton(name, num_classes=7, in_channels=channels)
    images = torch.empty(2, channels, size, size, device="meta")
    assert model(images).shape == (2, 7)
    features = model.features(images)
    assert features.shape == (2, model.classifier.in_features)


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (5, 9), (11, 8)])
def test_small_net_takes_small_and_odd_images(size):
    assert build_model("small", num_classes=3, in_channels=1)(torch.rand(2, 1, *size)).shape == (2, 3)


@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith("wrn")])
def test_forward_is_classifier_of_features(name):
    model = build_model(name, num_classes=4).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), model.classifier(model.features(images)))


def test_features_of_a_64_px_image_are_averages_not_corners():
    # A fixed 4x4 pool would see 16 positions at 64 px where there are 64.
    model = build_model("resnet18", num_classes=2).eval()
    seen = []
    model.layer4.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        features = model.features(torch.rand(1, 3, 64, 64))
    assert seen[0].shape == (1, 512, 8, 8)
    torch.testing.assert_close(features, seen[0].double().flatten(2).mean(2).float())


@pytest.mark.parametrize(
    ("name", "find"),
    [("preactresnet18", lambda m: m.layer2[0]), ("wrn34-10", lambda m: m.block2.layer[0])],
)
def test_projected_shortcut_starts_after_norm_and_relu(name, find):
    # The second convolution is silenced, so that only the shortcut speaks: of 1s and -1s it must see the 1s alone.
    with torch.device("meta"):
        block = find(build_model(name, num_classes=2))
    block = block.to_empty(device="cpu").eval()
    for norm in (block.bn1, block.bn2):
        norm.reset_parameters()
    projection = block.shortcut[0] if name == "preactresnet18" else block.convShortcut
    for weight, value in ((block.conv1.weight, 1), (block.conv2.weight, 0), (projection.weight, 1)):
        nn.init.constant_(weight, value)
    channels = block.conv1.in_channels
    x = torch.ones(1, channels, 2, 2)
    x[:, ::2] = -1
    expected = torch.full((1, block.conv1.out_channels, 1, 1), channels / 2)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=0)


def test_normalisation_inside_equals_normalising_before():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    plain, inside = build_model("small", num_classes=4), build_model("small", num_classes=4, normalize=(mean, std))
    inside.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 8, 8)
    before = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(inside.eval()(images), plain.eval()(before))


def test_normalisation_adds_no_name_to_the_state():
    inside = build_model("small", num_classes=4, normalize=((0.5,) * 3, (0.2,) * 3))
    assert inside.state_dict().keys() == build_model("small", num_classes=4).state_dict().keys()


@pytest.mark.parametrize("name", MODELS)
def test_last_layer_can_be_replaced_under_its_published_name(name):
    model = skeleton(name)
    layer = nn.Linear(model.classifier.in_features, 10, bias=False, device="meta")
    model.replace_classifier(layer)
    assert model.classifier is layer
    assert f"{model.classifier_name}.bias" not in model.state_dict()
    assert model(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 10)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_takes_part_in_the_forward_pass(name):
    # The TRADES WideResNet carries a block that never does; weight decay then shrinks it for nothing.
    model = skeleton(name)
    model(torch.empty(2, 3, 32, 32, device="meta")).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


def test_weights_depend_on_torchs_seed_alone():
    def weights(seed):
        torch.manual_seed(seed)
        return build_model("small", num_classes=4).linear.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize(
    ("name", "keywords", "fragment"),
    [
        ("vgg16", {}, "unknown model 'vgg16'; choose one of resnet18"),
        ("small", {"num_classes": 1}, "1 classes"),
        ("small", {"in_channels": 0}, "0 channels"),
        ("small", {"normalize": ((0.5,), (0.5,))}, "3 channels"),
        ("small", {"normalize": ((0.5,) * 3, (0.5, 0.0, 0.5))}, "positive std"),
        ("small", {"normalize": ((0.5, math.nan, 0.5), (0.5,) * 3)}, "finite mean"),
        ("small", {"normalize": ((0.5,) * 3, (0.5, math.inf, 0.5))}, "finite mean"),
    ],
)
def test_wrong_use_is_refused_by_value(name, keywords, fragment):
    with pytest.raises(LtatError, match=fragment):
        build_model(name, **({"num_classes": 10} | keywords))
