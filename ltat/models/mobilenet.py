"""MobileNetV2 for small images (Sandler et al., 2018), parameters named as in published CIFAR checkpoints."""

import torch.nn.functional as F
from torch import Tensor, nn

from ltat.models.base import Classifier, Normalization, conv1x1, conv3x3, global_average

# (expansion, output planes, blocks, stride of the first); the early strides of the ImageNet net are 1 here.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand (1x1), filter each channel (3x3), project (1x1); a shortcut where the size stays."""

    def __init__(self, in_planes: int, planes: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_planes
        self.conv1 = conv1x1(in_planes, hidden)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = conv1x1(hidden, planes)
        self.bn3 = nn.BatchNorm2d(planes)
        self.has_shortcut = stride == 1
        self.shortcut = nn.Sequential()
        if stride == 1 and in_planes != planes:
            self.shortcut = nn.Sequential(conv1x1(in_planes, planes), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_planes, H, W] to [B, planes, H/stride, W/stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return out + self.shortcut(x) if self.has_shortcut else out


class MobileNetV2(Classifier):
    """MobileNetV2 with a stride-1 stem, for images of 32x32 and up."""

    def __init__(self, num_classes: int, in_channels: int = 3, normalize: Normalization | None = None) -> None:
        super().__init__(num_classes, in_channels, normalize)
        self.conv1 = conv3x3(in_channels, 32)
        self.bn1 = nn.BatchNorm2d(32)
        self.layers = _blocks(32)
        self.conv2 = conv1x1(320, 1280)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        """Features [B, 1280]."""
        out = self.layers(F.relu(self.bn1(self.conv1(x))))
        return global_average(F.relu(self.bn2(self.conv2(out))))


def _blocks(in_planes: int) -> nn.Sequential:
    blocks = []
    for expansion, planes, count, first_stride in _GROUPS:
        for stride in (first_stride, *[1] * (count - 1)):
            blocks.append(InvertedResidual(in_planes, planes, expansion, stride))
            in_planes = planes
    return nn.Sequential(*blocks)
