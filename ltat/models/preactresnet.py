"""PreActResNet-18 (He et al., 2016b) in the variant of adversarial training's published checkpoints.

That variant (Rice et al., 2020) has a batch norm before the classifier and, as the paper, projects the shortcut
from the block's activated input. Another one in circulation (Wong et al., 2020) has the same parameter names inside
the blocks but no last batch norm and projects the raw input; its checkpoints are refused for the missing ``bn``.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ltat.models.base import Classifier, Normalization, conv1x1, conv3x3, global_average


class PreActBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions, and a shortcut around both."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = conv3x3(in_planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        changes = stride != 1 or in_planes != planes
        self.shortcut = nn.Sequential(conv1x1(in_planes, planes, stride)) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_planes, H, W] to [B, planes, H/stride, W/stride]."""
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class PreActResNet(Classifier):
    """PreActResNet-18 with a stride-1 3x3 stem, for images of 32x32 and up."""

    def __init__(self, num_classes: int, in_channels: int = 3, normalize: Normalization | None = None) -> None:
        super().__init__(num_classes, in_channels, normalize)
        self.conv1 = conv3x3(in_channels, 64)
        self.layer1 = _stage(64, 64, stride=1)
        self.layer2 = _stage(64, 128, stride=2)
        self.layer3 = _stage(128, 256, stride=2)
        self.layer4 = _stage(256, 512, stride=2)
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        """Features [B, 512]."""
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return global_average(F.relu(self.bn(out)))


def _stage(in_planes: int, planes: int, stride: int) -> nn.Sequential:
    return nn.Sequential(PreActBlock(in_planes, planes, stride), PreActBlock(planes, planes, 1))
