"""A compact convolutional net for images of 8x8 to 32x32, quick to train on a CPU."""

import torch.nn.functional as F
from torch import Tensor, nn

from ltat.errors import LtatError
from ltat.models.base import Classifier, Normalization, conv3x3


class SmallNet(Classifier):
    """Three 3x3 convolutions (16, 32, 64 channels, strides 1, 2, 2) with batch norm, then a linear layer.

    The last feature map is averaged over its four quadrants and not as a whole: at 8x8, knowing where a stroke
    lies is worth about ten points of robust accuracy under random crops.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, normalize: Normalization | None = None) -> None:
        super().__init__(num_classes, in_channels, normalize)
        self.conv1 = conv3x3(in_channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = conv3x3(16, 32, stride=2)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = conv3x3(32, 64, stride=2)
        self.bn3 = nn.BatchNorm2d(64)
        self.quadrants = QuadrantAverages()
        self.linear = nn.Linear(4 * 64, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        """Features [B, 256] of images of at least 5x5."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return self.quadrants(F.relu(self.bn3(self.conv3(out))))


class QuadrantAverages(nn.Module):
    """[B, d, H, W] to [B, 4d]; the quadrants share the middle row or column of an odd size.

    Plain average pooling, because the gradient of the adaptive one is not deterministic on CUDA.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The average of each quadrant, [B, 4d]."""
        height, width = x.shape[2:]
        if min(height, width) < 2:
            raise LtatError("model 'small' needs images of at least 5x5 pixels; enlarge them")
        if height == width == 2:
            return x.flatten(1)  # a quadrant is one pixel
        quadrant = ((height + 1) // 2, (width + 1) // 2)
        return F.avg_pool2d(x, quadrant, stride=(height // 2, width // 2)).flatten(1)
