"""A compact convolutional net for images of 8x8 to 32x32, quick to train on a CPU."""

import torch.nn.functional as F
from torch import Tensor, nn

from ltat.models.base import Classifier, Normalization, conv3x3, global_average


class SmallNet(Classifier):
    """Three 3x3 convolutions (16, 32, 64 channels, strides 1, 2, 2) with batch norm, then a linear layer."""

    def __init__(
        self, num_classes: int, in_channels: int = 3, normalize: Normalization | None = None
    ) -> None:
        super().__init__(num_classes, in_channels, normalize)
        self.conv1 = conv3x3(in_channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = conv3x3(16, 32, stride=2)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = conv3x3(32, 64, stride=2)
        self.bn3 = nn.BatchNorm2d(64)
        self.linear = nn.Linear(64, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        """Features [B, 64]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return global_average(F.relu(self.bn3(self.conv3(out))))
