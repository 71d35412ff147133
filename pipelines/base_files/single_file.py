"""Loading Stable Diffusion 1.x and XL checkpoints that are one `.safetensors` file in the original LDM layout.

The configs and the tokenizer's vocabulary come with the studio (`assets/configs`), so no network is needed. The names of
the weights are converted by diffusers' own `from_single_file`.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studio.pipelines.base_files.clip_vocabulary import END, clip_tokenizer
from studio.pipelines.base_files.components import Components
from studio.pipelines.base_files.loading import loading
from studio.pipelines.errors import BaseModelError
from studio.pipelines.families import SD15, SDXL, ModelFamily

OPEN_CLIP_PAD = "!"
"""OpenCLIP pads with the token of id 0, which is "!"."""

_FIRST_CONVOLUTION = "model.diffusion_model.input_blocks.0.0.weight"
_CROSS_ATTENTION = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
_VAE_PREFIXES = ("first_stage_model.", "vae.")
_TEXT_PREFIXES = {
    "sd15": ("cond_stage_model.transformer.text_model.",),
    "sdxl": ("conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."),
}
_ADAPTER_MARKS = ("lora_", ".lora", "lokr_", "hada_", "oft_", "dora_scale")


def load_single_file(path: Path, *, dtype: torch.dtype, config_dir: Path | None = None) -> Components:
    """Load the checkpoint at `path`, with weights in `dtype`, on the CPU and without a network.

    Args:
        config_dir: configs in the diffusers layout to build the components from, instead of the family's own ones.

    Raises:
        BaseModelError: the file is damaged, an adapter, of another family, or lacks a component.
    """
    shapes = read_shapes(path)
    family = checkpoint_family(path, shapes)
    _check_complete(path, family, shapes)
    tokenizers = _tokenizers(family)
    with loading(f"checkpoint {path}"):
        pipeline = _from_single_file(path, family, tokenizers, config_dir, dtype)
    modules = (pipeline.unet, pipeline.vae, *(getattr(pipeline, facts.component) for facts in family.text_encoders))
    for module in modules:
        absent = [name for name, tensor in module.state_dict().items() if tensor.is_meta]
        if absent:
            raise BaseModelError(f"{path} lacks {len(absent)} weights, {absent[0]!r} of the {type(module).__name__} for one.")
        nn.Module.to(module, dtype).eval().requires_grad_(False)
    return Components(
        family=family,
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoders=modules[2:],
        tokenizers=tokenizers,
        scheduler=_scheduler(pipeline.scheduler, shapes),
        zero_empty_negative=len(tokenizers) > 1,
        root_dir=path.parent,
        weight_files=(path,),
    )


def checkpoint_family(path: Path, shapes: dict[str, tuple[int, ...]]) -> ModelFamily:
    """The family of a checkpoint, from the names and shapes of its tensors; `BaseModelError` if it is none of ours."""
    if _FIRST_CONVOLUTION not in shapes:
        if any(mark in name for name in shapes for mark in _ADAPTER_MARKS):
            raise BaseModelError(f"{path} is an adapter, not a base model: give it with --adapter.")
        if any(name.startswith("down_blocks.") for name in shapes):
            raise BaseModelError(f"{path} is a UNet alone; a base model has its VAE and text encoders too: give its folder.")
        raise BaseModelError(f"{path} is no checkpoint of Stable Diffusion 1.x or XL: it has no UNet in the LDM layout.")
    if shapes[_FIRST_CONVOLUTION][1] != SD15.latent_channels:
        raise BaseModelError(
            f"{path} is an inpainting or editing model ({shapes[_FIRST_CONVOLUTION][1]} input channels). "
            "Use the plain text-to-image checkpoint."
        )
    if "edm_mean" in shapes or "edm_vpred.sigma_max" in shapes:
        raise BaseModelError(f"{path} was trained with EDM noise, which the studio does not draw with.")
    if any(name.startswith("conditioner.embedders.1.") for name in shapes):
        return SDXL
    if any(name.startswith("conditioner.embedders.0.model.") for name in shapes):
        raise BaseModelError(f"{path} is an SDXL refiner; use the SDXL base checkpoint.")
    if shapes.get("model.diffusion_model.label_emb.0.0.weight"):
        return SDXL
    if any(name.startswith("cond_stage_model.model.") for name in shapes) or shapes.get(_CROSS_ATTENTION, (0, 768))[1] == 1024:
        raise BaseModelError(
            f"{path} is a Stable Diffusion 2 checkpoint; a single file does not tell which of its two kinds. "
            "Give the model as a folder in the diffusers layout."
        )
    return SD15


def configs_dir(family: ModelFamily) -> Path:
    """The folder of the component configs that come with the studio for `family`."""
    return Path(str(resources.files("studio.assets"))) / "configs" / family.name


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint's tensors by name; no tensor is read. Raises BaseModelError for a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{path} is not a readable safetensors file: it is damaged or incomplete.") from error


def _check_complete(path: Path, family: ModelFamily, shapes: dict[str, tuple[int, ...]]) -> None:
    if not any(name.startswith(_VAE_PREFIXES) for name in shapes):
        raise BaseModelError(f"{path} has no VAE, which turns latents into pictures. Use a checkpoint that includes it.")
    for prefix in _TEXT_PREFIXES[family.name]:
        if not any(name.startswith(prefix) for name in shapes):
            raise BaseModelError(f"{path} has no text encoder at {prefix!r}. Use a checkpoint that includes it.")


def _tokenizers(family: ModelFamily) -> tuple[Any, ...]:
    pads = (END, OPEN_CLIP_PAD)
    return tuple(clip_tokenizer(pad_token=pad) for _, pad in zip(family.text_encoders, pads, strict=False))


def _from_single_file(
    path: Path, family: ModelFamily, tokenizers: tuple[Any, ...], config_dir: Path | None, dtype: torch.dtype
) -> Any:
    import diffusers

    parts = {facts.tokenizer: tokenizer for facts, tokenizer in zip(family.text_encoders, tokenizers, strict=True)}
    config = str(configs_dir(family) if config_dir is None else config_dir)
    pipeline_class = getattr(diffusers, family.pipeline_class)
    try:
        return pipeline_class.from_single_file(str(path), config=config, local_files_only=True, dtype=dtype, **parts)
    except NotImplementedError as error:  # torch's word for a weight that was never filled
        raise BaseModelError(f"{path} lacks some of its weights: the file is incomplete.") from error


def _scheduler(scheduler: Any, shapes: dict[str, tuple[int, ...]]) -> Any:
    """The family's scheduler, changed as marker tensors ask for: `v_pred` and `ztsnr`, which ComfyUI reads as well."""
    changes: dict[str, Any] = {}
    if "v_pred" in shapes:
        changes["prediction_type"] = "v_prediction"
        if "ztsnr" in shapes:
            changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return type(scheduler).from_config(scheduler.config, **changes)
