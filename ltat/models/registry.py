"""Every model by name."""

from collections.abc import Callable
from functools import partial

from ltat.data.grouping import MAX_CLASSES
from ltat.errors import LtatError
from ltat.models.base import Classifier, Normalization
from ltat.models.mobilenet import MobileNetV2
from ltat.models.preactresnet import PreActResNet
from ltat.models.resnet import ResNet
from ltat.models.resnet8 import ResNet8
from ltat.models.silu_wideresnet import SiluWideResNet
from ltat.models.small import SmallNet
from ltat.models.wideresnet import WideResNet

MAX_CHANNELS = 1024  # of images; hyperspectral ones have some hundred

MODELS: dict[str, Callable[[int, int, Normalization | None], Classifier]] = {
    "resnet18": ResNet,
    "preactresnet18": PreActResNet,
    "wrn34-10": WideResNet,
    "wrn28-10": partial(WideResNet, depth=28),
    "wrn28-10-silu": SiluWideResNet,
    "mobilenetv2": MobileNetV2,
    "resnet8-s2": ResNet8,
    "small": SmallNet,
}


def build_model(
    name: str, *, num_classes: int, in_channels: int = 3, normalize: Normalization | None = None
) -> Classifier:
    """A new model with random weights (from torch's global generator), in training mode.

    Args:
        name: a key of ``MODELS``.
        num_classes: number of outputs, 2 to 1,000,000.
        in_channels: channels of the images, 1 to 1024.
        normalize: (mean, std) per channel, applied inside the model; None leaves pixels in [0, 1].

    Returns:
        A ``Classifier``: images [B, in_channels, H, W] in [0, 1] to logits [B, num_classes].

    Raises:
        LtatError: an unknown name, or a number out of range.
    """
    if name not in MODELS:
        raise LtatError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
    if not (2 <= num_classes <= MAX_CLASSES and 1 <= in_channels <= MAX_CHANNELS):
        raise LtatError(
            f"{num_classes} classes and {in_channels} channels make no classifier; "
            f"give 2 to {MAX_CLASSES} classes and 1 to {MAX_CHANNELS} channels"
        )
    model = MODELS[name](num_classes, in_channels, normalize)
    model.name = name
    return model
