"""The referees' two backbones: different topologies, so that guide and judge do not share their blind spots."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FeatureMaps(NamedTuple):
    """Features of a batch of pictures `[N, 3, S, S]` at three strides."""

    fine: Tensor  # [N, C4, S/4, S/4]
    middle: Tensor  # [N, C8, S/8, S/8]
    coarse: Tensor  # [N, C16, S/16, S/16]


def conv_bn(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution (no bias) and batch norm, same padding."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al. 2016); the first may halve the grid."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_bn(in_channels, out_channels, stride=stride)
        self.second = conv_bn(out_channels, out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same else conv_bn(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, Cin, H, W]` to `[N, Cout, H/stride, W/stride]`."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class ResidualBackbone(nn.Module):
    """The guide's: pixels folded 2x2, then residual stages that halve the grid by stride."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.stem = conv_bn(12, fine)
        self.fine = nn.Sequential(ResidualBlock(fine, fine, 2))
        self.middle = nn.Sequential(ResidualBlock(fine, middle, 2), ResidualBlock(middle, middle))
        self.coarse = nn.Sequential(ResidualBlock(middle, coarse, 2), ResidualBlock(coarse, coarse))

    def forward(self, pixels: Tensor) -> FeatureMaps:
        """Pixels `[N, 3, S, S]`, about zero mean, to the maps at strides 4, 8 and 16."""
        x = F.relu(self.stem(F.pixel_unshuffle(pixels, 2)))
        fine = self.fine(x)
        middle = self.middle(fine)
        return FeatureMaps(fine, middle, self.coarse(middle))


class AggregationBlock(nn.Module):
    """A chain of 3x3 convolutions whose every output is kept and mixed once at the end (VoVNet, Lee et al. 2019)."""

    def __init__(self, in_channels: int, growth: int, out_channels: int, num_layers: int) -> None:
        super().__init__()
        inputs = [in_channels, *[growth] * (num_layers - 1)]
        self.layers = nn.ModuleList(conv_bn(width, growth) for width in inputs)
        self.mix = conv_bn(in_channels + growth * num_layers, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, Cin, H, W]` to `[N, Cout, H, W]`."""
        kept = [x]
        for layer in self.layers:
            kept.append(F.silu(layer(kept[-1])))
        return F.silu(self.mix(torch.cat(kept, dim=1)))


class AggregationBackbone(nn.Module):
    """The judge's: strided stem, aggregation blocks, and pooling that keeps both the mean and the peak."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.stem = nn.Sequential(conv_bn(3, fine // 2, 5, 2), nn.SiLU(), conv_bn(fine // 2, fine, 3, 2), nn.SiLU())
        self.fine = AggregationBlock(fine, fine // 2, fine, 3)
        self.middle = AggregationBlock(fine, middle // 2, middle, 4)
        self.coarse = AggregationBlock(middle, coarse // 2, coarse, 3)

    def forward(self, pixels: Tensor) -> FeatureMaps:
        """Pixels `[N, 3, S, S]`, about zero mean, to the maps at strides 4, 8 and 16."""
        fine = self.fine(self.stem(pixels))
        middle = self.middle(_halve(fine))
        return FeatureMaps(fine, middle, self.coarse(_halve(middle)))


def _halve(x: Tensor) -> Tensor:
    """Half the grid: the mean of average and maximum pooling."""
    return (F.avg_pool2d(x, 2) + F.max_pool2d(x, 2)) / 2


BACKBONES: dict[str, type[ResidualBackbone | AggregationBackbone]] = {
    "residual": ResidualBackbone,
    "aggregation": AggregationBackbone,
}
