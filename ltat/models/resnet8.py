"""A ResNet with one block in each of three stages (He et al., 2016), for runs on a CPU."""

import torch.nn.functional as F
from torch import Tensor, nn

from ltat.models.base import Classifier, Normalization, conv3x3, global_average
from ltat.models.resnet import BasicBlock


class ResNet8(Classifier):
    """ResNet-8 of the family for CIFAR (16, 32, 64 channels), whose stem halves the size of the image.

    With the stem's stride of 2 a step of an attack costs a quarter. For images of 32x32 and up.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, normalize: Normalization | None = None) -> None:
        super().__init__(num_classes, in_channels, normalize)
        self.conv1 = conv3x3(in_channels, 16, stride=2)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = BasicBlock(16, 16, stride=1)
        self.layer2 = BasicBlock(16, 32, stride=2)
        self.layer3 = BasicBlock(32, 64, stride=2)
        self.linear = nn.Linear(64, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        """Features [B, 64]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return global_average(self.layer3(self.layer2(self.layer1(out))))
