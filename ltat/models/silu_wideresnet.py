"""WideResNet-28-10 with SiLU, of which many published robust CIFAR networks are (Gowal et al., 2020, and their code).

Names and shapes are those of ``DMWideResNet`` in RobustBench, so that the files of Wang et al. (2023), Cui et al.
(2023), Gowal et al. (2021) and others load. Apart from the activation it differs from ``wrn28-10`` in the padding of a
convolution of stride 2: one row and column at the end alone, as TensorFlow pads.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ltat.models.base import Classifier, Normalization, conv1x1, conv3x3, global_average

PUBLISHED_NORMALIZATIONS: dict[str, Normalization] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""By which the published networks of this kind normalise. The constants stand in their code, not in their files."""
_PADDING = {1: (1, 1, 1, 1), 2: (0, 1, 0, 1)}  # by stride: left, right, top, bottom


class SiluBlock(nn.Module):
    """Pre-activation block; a projected shortcut starts after the first batch norm and SiLU."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.padding = _PADDING[stride]
        self.batchnorm_0 = nn.BatchNorm2d(in_planes)
        self.conv_0 = nn.Conv2d(in_planes, planes, kernel_size=3, stride=stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(planes)
        self.conv_1 = conv3x3(planes, planes)
        self.shortcut = None if in_planes == planes else conv1x1(in_planes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_planes, H, W] to [B, planes, H/stride, W/stride]."""
        active = F.silu(self.batchnorm_0(x))
        out = self.conv_0(F.pad(active, self.padding))
        out = self.conv_1(F.silu(self.batchnorm_1(out)))
        return out + (x if self.shortcut is None else self.shortcut(active))


class SiluGroup(nn.Module):
    """Blocks of one width; the first changes width and stride."""

    def __init__(self, blocks: int, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        rest = [SiluBlock(planes, planes, 1) for _ in range(blocks - 1)]
        self.block = nn.Sequential(SiluBlock(in_planes, planes, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_planes, H, W] to [B, planes, H/stride, W/stride]."""
        return self.block(x)


class SiluWideResNet(Classifier):
    """WideResNet with SiLU for images of 32x32 and up; ``depth`` is 4 more than a multiple of 6."""

    classifier_name = "logits"

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        normalize: Normalization | None = None,
        depth: int = 28,
        widen: int = 10,
    ) -> None:
        super().__init__(num_classes, in_channels, normalize)
        blocks = (depth - 4) // 6  # in each of three groups, of two convolutions each
        self.init_conv = conv3x3(in_channels, 16)
        self.layer = nn.Sequential(
            SiluGroup(blocks, 16, 16 * widen, stride=1),
            SiluGroup(blocks, 16 * widen, 32 * widen, stride=2),
            SiluGroup(blocks, 32 * widen, 64 * widen, stride=2),
        )
        self.batchnorm = nn.BatchNorm2d(64 * widen)
        self.logits = nn.Linear(64 * widen, num_classes)

    def trunk(self, x: Tensor) -> Tensor:
        """Features [B, 64·widen]."""
        return global_average(F.silu(self.batchnorm(self.layer(self.init_conv(x)))))
