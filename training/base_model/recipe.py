"""Every number of the recipe in one frozen record, saved beside the weights it made."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """Sizes and schedules of the embedded base.

    ``size`` is in pixels, ``latent_size`` = size / 8 in cells. Learning rates are per optimizer step of ``batch_size`` pictures.
    """

    seed: int = 0
    size: int = 96
    latent_channels: int = 16
    # Latent channel i has standard deviation proportional to (PCA sigma_i) ** (1 - whitening): 1 would make the weakest
    # component as loud as the brightness of the picture, 0 would drown it in the first noise steps.
    whitening: float = 0.5
    vae_scaling_factor: float = 2.0

    decoder_channels: int = 48
    decoder_blocks: tuple[int, ...] = (4, 3, 2, 1)
    decoder_batch_size: int = 12
    decoder_learning_rate: float = 3e-3
    decoder_noise: float = 0.15

    block_out_channels: tuple[int, ...] = (80, 128, 160)
    transformer_layers_per_block: int = 2
    layers_per_block: int = 1
    num_heads: int = 4
    norm_num_groups: int = 16

    text_width: int = 128
    text_layers: int = 3
    text_heads: int = 4
    max_tokens: int = 32

    batch_size: int = 64
    learning_rate: float = 1.5e-3
    muon_learning_rate: float = 2.5e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    caption_dropout: float = 0.1
    # 85 % of the timesteps are sigmoid(N(.7, 1)), the rest uniform: the upper noise levels decide shape and binding.
    timestep_mean: float = 0.7
    timestep_std: float = 1.0
    timestep_uniform_share: float = 0.15
    # Of a batch, drawn among the scenes with patterns that are learned last; above zero in a last phase only.
    hard_pattern_share: float = 0.0

    @property
    def latent_size(self) -> int:
        """Side of the latents, in cells."""
        return self.size // 8

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> BaseRecipe:
        """Read what `save` wrote."""
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
        return cls(**values)
