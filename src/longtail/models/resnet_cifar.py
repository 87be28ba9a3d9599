"""The ResNet for 32x32 images: three stages of basic blocks and shortcuts without parameters."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from longtail.errors import ConfigError


class BasicBlock(nn.Module):
    """relu(BN(conv(relu(BN(conv(x))))) + shortcut(x)), with 3x3 convolutions without bias."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.new_channels = width - width_in

    def forward(self, x: Tensor) -> Tensor:
        """(B, width_in, H, W) -> (B, width, H / stride, W / stride), odd sides rounded up."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))

    def shortcut(self, x: Tensor) -> Tensor:
        """Option A of He et al.: every stride-th pixel, and zero channels half before and half after."""
        if self.new_channels == 0:
            return x
        before = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))


class ResNetCIFAR(nn.Module):
    """ResNet-``depth`` for small images: images (B, 3, H, W) -> features (B, 4 * width).

    Stem 3x3 of stride 1 without pooling; three stages of (depth - 2) / 6 blocks with widths (1, 2, 4) * ``width`` and
    strides 1, 2, 2; global average. Convolutions are He normal (fan-in, gain sqrt 2), batch-norm 1 and 0.

    He et al., "Deep Residual Learning", arXiv 1512.03385, section 4.2. Authors' program of ConCutMix: the new zero
    channels stand half before and half after, not all after. Here: as the program, because checkpoints must fit.
    """

    def __init__(self, depth: int, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError(f"A CIFAR ResNet has a depth of 6 n + 2 (8, 14, 20, 32, ...), not {depth}.")
        if width < 1:
            raise ConfigError(f"The width of a CIFAR ResNet must be at least 1, not {width}.")
        blocks = (depth - 2) // 6
        self.feature_dim = 4 * width
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(blocks, width, width, stride=1)
        self.layer2 = _stage(blocks, width, 2 * width, stride=2)
        self.layer3 = _stage(blocks, 2 * width, 4 * width, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), normalized -> features (B, feature_dim)."""
        maps: Tensor = F.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return maps.mean(dim=(2, 3))


def _stage(blocks: int, width_in: int, width: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(width_in, width, stride)
    return nn.Sequential(first, *(BasicBlock(width, width, 1) for _ in range(blocks - 1)))
