"""WideResNet-34-10 and -28-10 (Zagoruyko & Komodakis, 2016) in the TRADES variant, without dropout.

The TRADES code registers one more group of blocks (``sub_block1``) that its forward pass never uses; it is
left out here, and ``load_published`` drops it from old checkpoints.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from ltat.models.base import Classifier, Normalization, conv1x1, conv3x3, global_average

_WIDEN = 10


class WideBlock(nn.Module):
    """Pre-activation block; a projected shortcut starts after the first batch norm and ReLU."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = conv3x3(in_planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.convShortcut = None if in_planes == planes else conv1x1(in_planes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_planes, H, W] to [B, planes, H/stride, W/stride]."""
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class WideGroup(nn.Module):
    """Blocks of one width; the first changes width and stride."""

    def __init__(self, blocks: int, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        rest = [WideBlock(planes, planes, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(WideBlock(in_planes, planes, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_planes, H, W] to [B, planes, H/stride, W/stride]."""
        return self.layer(x)


class WideResNet(Classifier):
    """WideResNet of width 10 for images of 32x32 and up; ``depth`` is 4 more than a multiple of 6."""

    classifier_name = "fc"

    def __init__(
        self, num_classes: int, in_channels: int = 3, normalize: Normalization | None = None, depth: int = 34
    ) -> None:
        super().__init__(num_classes, in_channels, normalize)
        blocks = (depth - 4) // 6  # in each of three groups, of two convolutions each
        self.conv1 = conv3x3(in_channels, 16)
        self.block1 = WideGroup(blocks, 16, 16 * _WIDEN, stride=1)
        self.block2 = WideGroup(blocks, 16 * _WIDEN, 32 * _WIDEN, stride=2)
        self.block3 = WideGroup(blocks, 32 * _WIDEN, 64 * _WIDEN, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * _WIDEN)
        self.fc = nn.Linear(64 * _WIDEN, num_classes)
        _initialise(self)

    def trunk(self, x: Tensor) -> Tensor:
        """Features [B, 640]."""
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return global_average(F.relu(self.bn1(out)))


def _initialise(model: WideResNet) -> None:
    """He initialisation by fan-out and a classifier without bias, as in the TRADES code."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = math.prod(layer.kernel_size) * layer.out_channels
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / fan_out))
    nn.init.zeros_(model.fc.bias)
