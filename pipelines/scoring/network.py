"""The referee: one small backbone with heads for objects, their surfaces, the picture, identity and text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from studio.pipelines.scoring.backbones import BACKBONES, conv_bn
from studio.pipelines.scoring.regions import sample_regions
from studio.pipelines.scoring.text_tower import TextTower

PIXEL_MEAN, PIXEL_SCALE = 0.6, 0.3
REGION_CELLS = 10
HIDDEN = 96


@dataclass(frozen=True, kw_only=True)
class RefereeConfig:
    """Everything that fixes a referee's network; stored beside its weights.

    The names are stored too, so that a frozen referee keeps its meaning when the world's lists change.
    """

    backbone: str
    widths: tuple[int, int, int]
    region_width: int
    classes: tuple[str, ...]
    colours: tuple[str, ...]
    patterns: tuple[str, ...]
    backgrounds: tuple[str, ...]
    styles: tuple[str, ...]
    words: tuple[str, ...]
    image_size: int = 96
    identity_dim: int = 64
    joint_dim: int = 96

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RefereeConfig:
        """The config that `to_dict` described."""
        plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        return cls(**plain)


class PictureReading(NamedTuple):
    """Raw outputs for a batch of pictures."""

    heat: Tensor  # [N, classes, G, G] logits, G = S/8
    distances: Tensor  # [N, 4, G, G] from a cell's centre to the box's sides, fractions of the picture
    background: Tensor  # [N, backgrounds] logits
    style: Tensor  # [N, styles] logits
    joint: Tensor  # [N, joint_dim], unit length
    pooled: Tensor  # [N, pooled] backbone features, for distances between sets of pictures
    fine: Tensor  # [N, C, S/4, S/4], for `regions`


class RegionReading(NamedTuple):
    """Raw outputs for boxes."""

    class_name: Tensor  # [R, classes] logits
    colour: Tensor  # [R, colours] logits
    pattern: Tensor  # [R, patterns] logits
    identity: Tensor  # [R, identity_dim], unit length


class RefereeNetwork(nn.Module):
    """Detector, reader, identity and joint image-text embedding on one backbone."""

    def __init__(self, config: RefereeConfig) -> None:
        super().__init__()
        self.config = config
        fine, middle, coarse = config.widths
        self.backbone = BACKBONES[config.backbone](config.widths)
        self.coarse_to_middle = conv_bn(coarse, middle, 1)
        self.middle_lateral = conv_bn(middle, middle)
        self.middle_to_fine = conv_bn(middle, fine, 1)
        self.fine_lateral = conv_bn(fine, fine)
        self.detect = conv_bn(middle, middle)
        self.heat = nn.Conv2d(middle, len(config.classes), 1)
        self.distances = nn.Conv2d(middle, 4, 1)
        for head, bias in ((self.heat, -3.5), (self.distances, -1.5)):  # rare positives: begin cold (Lin et al. 2017, 3.3)
            assert head.bias is not None
            nn.init.constant_(head.bias, bias)
        pooled = 2 * coarse + 2 * fine
        self.background = nn.Linear(pooled, len(config.backgrounds))
        self.style = nn.Sequential(nn.Linear(pooled, 64), nn.ReLU(), nn.Linear(64, len(config.styles)))
        self.squeeze = conv_bn(middle, 24, 1)
        self.joint = nn.Sequential(
            nn.Linear(24 * 16 + pooled, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, config.joint_dim)
        )
        self.text = TextTower(config.words, config.joint_dim)
        self.log_temperature = nn.Parameter(torch.tensor(2.5))
        self.region = RegionHead(config)

    def forward(self, pixels: Tensor) -> PictureReading:
        """Read pictures `[N, 3, S, S]` in 0..1, S the config's `image_size`."""
        pixels = (pixels - PIXEL_MEAN) / PIXEL_SCALE
        maps = self.backbone(pixels)
        up = F.interpolate(self.coarse_to_middle(maps.coarse), scale_factor=2.0)
        middle = F.relu(self.middle_lateral(maps.middle + up))
        up = F.interpolate(self.middle_to_fine(middle), scale_factor=2.0)
        fine = F.relu(self.fine_lateral(maps.fine + up))
        detect = F.relu(self.detect(middle))
        pooled = torch.cat(
            [
                maps.coarse.mean(dim=(2, 3)),
                maps.coarse.amax(dim=(2, 3)),
                maps.fine.mean(dim=(2, 3)),
                maps.fine.flatten(2).std(dim=2),
            ],
            dim=1,
        )
        layout = F.adaptive_avg_pool2d(F.relu(self.squeeze(middle)), 4).flatten(1)
        joint = F.normalize(self.joint(torch.cat([layout, pooled], dim=1)), dim=1)
        return PictureReading(
            self.heat(detect),
            self.distances(detect).clamp(-6, 1).exp(),
            self.background(pooled),
            self.style(pooled),
            joint,
            pooled,
            fine,
        )

    def regions(self, pixels: Tensor, reading: PictureReading, picture: Tensor, boxes: Tensor) -> RegionReading:
        """Read boxes `[R, 4]` (fractions) of the pictures with indices `picture` `[R]`."""
        centred = (pixels - PIXEL_MEAN) / PIXEL_SCALE
        surface = sample_regions(centred, picture, boxes, 4 * REGION_CELLS)
        features = sample_regions(reading.fine, picture, boxes, REGION_CELLS)
        output: RegionReading = self.region(surface, features)
        return output

    def embed_text(self, prompts: list[str]) -> Tensor:
        """Unit vectors `[N, joint_dim]` of prompts in the joint space."""
        return F.normalize(self.text(prompts), dim=1)


class RegionHead(nn.Module):
    """Class, surface and identity of one box, from its own pixels and the backbone's fine features.

    Reading and identity have a branch each: trained through one, the much larger identity loss cost the patterns
    five points in a hundred.
    """

    def __init__(self, config: RefereeConfig) -> None:
        super().__init__()
        self.reading = RegionBranch(config.widths[0], config.region_width)
        self.identity = RegionBranch(config.widths[0], config.region_width)
        self.class_name = nn.Linear(HIDDEN, len(config.classes))
        self.colour = nn.Linear(HIDDEN, len(config.colours))
        self.pattern = nn.Linear(HIDDEN, len(config.patterns))
        self.vector = nn.Linear(HIDDEN, config.identity_dim)

    def forward(self, surface: Tensor, features: Tensor) -> RegionReading:
        """Pixels `[R, 3, 4 c, 4 c]` and features `[R, C, c, c]` of the boxes, c = `REGION_CELLS`, to their reading."""
        reading = self.reading(surface, features)
        return RegionReading(
            self.class_name(reading),
            self.colour(reading),
            self.pattern(reading),
            F.normalize(self.vector(self.identity(surface, features)), dim=1),
        )


class RegionBranch(nn.Module):
    """A box's pixels and features to `HIDDEN` numbers; the pooled ones see texture wherever it is."""

    def __init__(self, feature_channels: int, width: int) -> None:
        super().__init__()
        self.surface = nn.Sequential(conv_bn(12, 28), nn.ReLU(), conv_bn(28, 28), nn.ReLU(), conv_bn(28, width, 3, 2), nn.ReLU())
        self.mix = nn.Sequential(conv_bn(width + feature_channels, width), nn.ReLU(), conv_bn(width, width, 3, 2), nn.ReLU())
        cells = ((REGION_CELLS + 1) // 2) ** 2
        self.hidden = nn.Sequential(nn.Linear(width * (cells + 4), HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU())

    def forward(self, surface: Tensor, features: Tensor) -> Tensor:
        """See `RegionHead.forward`; returns `[R, HIDDEN]`."""
        texture = self.surface(F.pixel_unshuffle(surface, 2))
        mixed = self.mix(torch.cat([texture, features], dim=1))
        parts = [mixed.flatten(1)]
        for x in (texture, mixed):
            parts += [x.mean(dim=(2, 3)), x.amax(dim=(2, 3))]
        output: Tensor = self.hidden(torch.cat(parts, dim=1))
        return output
