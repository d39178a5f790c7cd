"""What all classifiers share: features, a replaceable last layer, optional normalisation inside."""

import copy
import math
from collections.abc import Sequence
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from ltat.errors import LtatError

Normalization = tuple[Sequence[float], Sequence[float]]  # (mean, std) per channel


def same_normalization(one: Normalization | None, other: Normalization | None) -> bool:
    """Whether two networks normalise alike, within the rounding of fp32."""
    if one is None or other is None:
        return one is other
    if [len(values) for values in one] != [len(values) for values in other]:
        return False
    return all(torch.allclose(torch.tensor(a), torch.tensor(b)) for a, b in zip(one, other, strict=True))


class Normalize(nn.Module):
    """(x - mean) / std per channel.

    The constants are not part of the state dict, so that published checkpoints load with or without them.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channels: int) -> None:
        super().__init__()
        numbers = all(map(math.isfinite, (*mean, *std)))
        if len(mean) != channels or len(std) != channels or not numbers or not all(value > 0 for value in std):
            raise LtatError(
                f"normalisation by mean {tuple(mean)} and std {tuple(std)} does not fit {channels} channels; "
                "give one finite mean and one positive std per channel"
            )
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images [B, ch, H, W]."""
        return (x - self.mean) / self.std


class Classifier(nn.Module):
    """Base of all models: ``forward(x) = classifier(features(x))``.

    Subclasses define ``trunk`` and a last layer under the name ``classifier_name`` (that layer's published
    name, which differs between families).

    Attributes:
        name: key in ``MODELS``; set by ``build_model``.
        num_classes: number of outputs.
        in_channels: channels of the images.
        normalization: (mean, std), or None.
        head: key of the last layer in ``HEADS``; set by ``put_head``.
        class_names: one per class in the order of the logits, or empty where they are not known.
    """

    classifier_name: ClassVar[str] = "linear"

    def __init__(self, num_classes: int, in_channels: int, normalize: Normalization | None) -> None:
        super().__init__()
        self.name = ""
        self.head = "linear"
        self.class_names: tuple[str, ...] = ()
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.normalization = normalize
        self.normalize = nn.Identity() if normalize is None else Normalize(*normalize, in_channels)

    def trunk(self, x: Tensor) -> Tensor:
        """Normalised images [B, ch, H, W] to features [B, d]."""
        raise NotImplementedError

    def features(self, x: Tensor) -> Tensor:
        """Penultimate features [B, d] of images [B, ch, H, W] in [0, 1]."""
        return self.trunk(self.normalize(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, num_classes] of images [B, ch, H, W] in [0, 1]."""
        return self.classifier(self.features(x))

    @property
    def classifier(self) -> nn.Module:
        """The last layer, whatever its published name."""
        return getattr(self, self.classifier_name)

    def replace_classifier(self, layer: nn.Module) -> None:
        """Put another layer (features [B, d] to logits [B, num_classes]) in the last one's place."""
        setattr(self, self.classifier_name, layer)

    def with_classifier(self, layer: nn.Module) -> Self:
        """A network of the same modules with another last layer; this one stays as it is."""
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        twin.replace_classifier(layer)
        return twin


M = TypeVar("M", bound=nn.Module)


def moved(model: M, device: torch.device | str) -> M:
    """The model on that device.

    Raises:
        LtatError: there is no such device, or no room on it.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # what torch raises differs from build to build
        reason = str(error).partition("\n")[0]
        raise LtatError(f"device {str(device)!r} cannot be used ({reason}); choose cpu or cuda") from error


def conv3x3(in_planes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps the size at stride 1, without bias (batch norm follows)."""
    return nn.Conv2d(in_planes, planes, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_planes: int, planes: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(in_planes, planes, kernel_size=1, stride=stride, bias=False)


def global_average(x: Tensor) -> Tensor:
    """Mean over height and width: [B, d, H, W] to [B, d]."""
    return x.mean(dim=(2, 3))
