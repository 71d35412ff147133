"""A base model in memory: its loaded components, and where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studio.pipelines.base_files.components import Components
from studio.pipelines.base_files.content_hash import content_hash
from studio.pipelines.base_files.folder import load_folder
from studio.pipelines.base_files.hub import download, is_hub_id
from studio.pipelines.base_files.loading import quiet_libraries
from studio.pipelines.base_files.single_file import load_single_file
from studio.pipelines.base_files.weight_files import PICKLE_SUFFIXES
from studio.pipelines.encoding import (
    TextCondition,
    add_time_ids,
    decode_latents,
    encode_images,
    encode_negative,
    encode_text,
)
from studio.pipelines.errors import BaseModelError, MissingFileError
from studio.pipelines.families import ModelFamily

__all__ = [
    "BaseModel",
    "TextCondition",
    "add_time_ids",
    "decode_latents",
    "embedded_base_dir",
    "encode_images",
    "encode_negative",
    "encode_text",
    "load_base",
]

EMBEDDED = "embedded"


@dataclass(frozen=True, eq=False)
class BaseModel:
    """The components of one text-to-image model, frozen and in evaluation mode.

    Attributes:
        family: facts about its kind.
        text_encoders, tokenizers: in the family's order.
        scheduler: as saved with the model; it fixes the noise schedule and the prediction type.
        source: what was asked for: "embedded", a path or a hub id.
        size: side of the square it draws by default, in pixels.
        zero_empty_negative: whether no negative prompt means text features of zeros (SDXL) instead of the empty string's.
        weight_files: safetensors files that the weights came from, under `root_dir`.
    """

    family: ModelFamily
    unet: nn.Module
    vae: nn.Module
    text_encoders: tuple[nn.Module, ...]
    tokenizers: tuple[Any, ...]
    scheduler: Any
    source: str
    size: int
    zero_empty_negative: bool = False
    root_dir: Path = Path()
    weight_files: tuple[Path, ...] = ()

    @property
    def content_hash(self) -> str:
        """SHA-256 over the weight files, 64 hex digits; "" for a model that was not loaded from files.

        For a single checkpoint it is the file's own SHA-256, whose first ten digits other tools call the model hash.
        """
        return content_hash(self.root_dir, self.weight_files) if self.weight_files else ""

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the UNet's weights."""
        return next(self.unet.parameters()).dtype

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts, by the scheduler's config: "epsilon" or "v_prediction"."""
        return str(self.scheduler.config.prediction_type)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent, a side."""
        return _vae_scale_factor(self.vae)

    def components(self) -> dict[str, nn.Module]:
        """The modules that adapters can change, by the name files give them: `unet`, `text_encoder`, `text_encoder_2`."""
        names = (facts.component for facts in self.family.text_encoders)
        return {"unet": self.unet, **dict(zip(names, self.text_encoders, strict=True))}

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> BaseModel:
        """Move every component, in place, and return this model."""
        for module in (self.unet, self.vae, *self.text_encoders):
            # Past diffusers' own `to`, which warns of modules to keep in float32 even where a model names none.
            nn.Module.to(module, device=device, dtype=dtype)
        return self

    def diffusers_pipeline(self) -> Any:
        """A real diffusers pipeline that shares this model's modules and has a scheduler of its own."""
        parts: dict[str, Any] = {"vae": self.vae, "unet": self.unet}
        for facts, encoder, tokenizer in zip(self.family.text_encoders, self.text_encoders, self.tokenizers, strict=True):
            parts |= {facts.component: encoder, facts.tokenizer: tokenizer}
        if len(self.text_encoders) > 1:
            parts |= {"force_zeros_for_empty_prompt": self.zero_empty_negative, "add_watermarker": False}
        else:
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        with quiet_libraries():
            import diffusers

            return getattr(diffusers, self.family.pipeline_class)(scheduler=scheduler, **parts)


def embedded_base_dir() -> Path:
    """The folder, in the diffusers layout, of the model that comes with the studio."""
    return Path(str(resources.files("studio.assets"))) / "base"


def load_base(
    spec: str | Path | None = None, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> BaseModel:
    """Load a base model.

    Args:
        spec: None or "embedded" for the model that comes with the studio; a folder in the diffusers layout; a single
            `.safetensors` checkpoint of Stable Diffusion 1.x or XL; or `owner/name` on the Hugging Face hub. Only hub
            models that are not in the local cache need a network.
        dtype: of all weights, whatever the files hold. device: where the components go.

    Raises:
        MissingFileError: there is nothing at `spec`.
        BaseModelError: what is there cannot be used; the message says why.
    """
    if spec is None or str(spec) == EMBEDDED:
        folder = embedded_base_dir()
        if not (folder / "model_index.json").is_file():
            raise MissingFileError(
                f"The embedded base model is not in {folder}. Run `make base-model` to build it, or choose another with --base."
            )
        return _base_model(load_folder(folder, dtype=dtype), source=EMBEDDED, device=device)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _base_model(load_folder(path, dtype=dtype), source=str(spec), device=device)
    if path.is_file():
        _refuse_other_formats(path)
        return _base_model(load_single_file(path, dtype=dtype), source=str(spec), device=device)
    if isinstance(spec, str) and is_hub_id(spec):
        return _base_model(load_folder(download(spec), dtype=dtype), source=spec, device=device)
    raise MissingFileError(
        f"There is no base model at {spec}. Give a folder in the diffusers layout, a .safetensors checkpoint, a hub id "
        "like owner/name, or nothing for the embedded model."
    )


def _refuse_other_formats(path: Path) -> None:
    if path.suffix in PICKLE_SUFFIXES:
        raise BaseModelError(
            f"{path} is not a safetensors file. Reading {path.suffix} files can run code hidden in them, so they are "
            "refused: convert the model to safetensors, or get it in that form."
        )
    if path.suffix != ".safetensors":
        raise BaseModelError(f"{path} is no base model: it should be a folder or end in .safetensors.")


def _base_model(components: Components, *, source: str, device: torch.device | str) -> BaseModel:
    sample_size = components.unet.config.sample_size  # type: ignore[union-attr]
    side = sample_size if isinstance(sample_size, int) else None
    model = BaseModel(
        family=components.family,
        unet=components.unet,
        vae=components.vae,
        text_encoders=components.text_encoders,
        tokenizers=components.tokenizers,
        scheduler=components.scheduler,
        source=source,
        size=components.family.default_size if side is None else side * _vae_scale_factor(components.vae),
        zero_empty_negative=components.zero_empty_negative,
        root_dir=components.root_dir,
        weight_files=components.weight_files,
    )
    model.to(device)
    from studio.pipelines.denoising.attention.choice import use_wanted_attention

    use_wanted_attention(model.unet, model.device, model.dtype)
    return model


def _vae_scale_factor(vae: nn.Module) -> int:
    config: Any = vae.config
    # AutoencoderTiny keeps its levels under another name.
    levels = config.get("encoder_block_out_channels") or config["block_out_channels"]
    return int(2 ** (len(levels) - 1))
