"""Loading a base model from a folder in the diffusers layout, weights from safetensors files only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from studio.pipelines.base_files.components import Components
from studio.pipelines.base_files.loading import loading
from studio.pipelines.base_files.weight_files import find_weight_files
from studio.pipelines.errors import BaseModelError
from studio.pipelines.families import ModelFamily, detect_family

_SUPPORTED_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny")


def load_folder(folder: Path, *, dtype: torch.dtype) -> Components:
    """Load every component of the model in `folder`, with weights in `dtype`, on the CPU.

    Raises:
        BaseModelError: when the folder is no text-to-image model of a known family, lacks a component, or holds weights
            in another format than safetensors.
    """
    index = _read_json(folder / "model_index.json", what="a base model in the diffusers layout")
    _check_pipeline(folder, index)
    family = _family_of(folder)
    weight_files: list[Path] = []

    def load(name: str, component_class: Any) -> nn.Module:
        variant, files = find_weight_files(folder / name)
        weight_files.extend(files)
        with loading(f"{name} of {folder}"):
            return load_module(component_class, folder / name, variant=variant, dtype=dtype)

    unet = load("unet", _diffusers_class("UNet2DConditionModel"))
    vae = load("vae", _autoencoder_class(folder / "vae"))
    text_encoders = tuple(
        load(facts.component, _transformers_class(projection=facts.projection)) for facts in family.text_encoders
    )
    with loading(f"tokenizer of {folder}"):
        tokenizers = tuple(_load_tokenizer(folder / facts.tokenizer) for facts in family.text_encoders)
    return Components(
        family=family,
        unet=unet,
        vae=vae,
        text_encoders=text_encoders,
        tokenizers=tokenizers,
        scheduler=_load_scheduler(folder / "scheduler"),
        zero_empty_negative=bool(index.get("force_zeros_for_empty_prompt", len(text_encoders) > 1)),
        root_dir=folder,
        weight_files=tuple(weight_files),
    )


def load_module(component_class: Any, component_dir: Path, *, variant: str | None, dtype: torch.dtype) -> nn.Module:
    """`from_pretrained` on a local folder, in `dtype` whatever the config says, and complete or not at all."""
    module, report = component_class.from_pretrained(
        component_dir,
        variant=variant,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        # transformers 5 would otherwise load an fp16 text encoder as fp16 beside an fp32 UNet.
        dtype=dtype,
    )
    absent = sorted(report.get("missing_keys", ()))
    if absent:
        raise BaseModelError(
            f"{component_dir} lacks {len(absent)} of its weights, {absent[0]!r} for one: the file does not belong to "
            "this config, or is incomplete."
        )
    module.eval().requires_grad_(False)
    return module


def _check_pipeline(folder: Path, index: dict[str, Any]) -> None:
    name = index.get("_class_name")
    if name not in _SUPPORTED_PIPELINES and not (folder / "unet").is_dir():
        raise BaseModelError(
            f"{folder} is a {name}; base models of the studio are Stable Diffusion 1.x, 2.x, XL and the embedded model."
        )


def _family_of(folder: Path) -> ModelFamily:
    for name in ("unet", "vae", "scheduler"):
        _require_dir(folder, name)
    unet_config = _read_json(folder / "unet" / "config.json", what="the config of the UNet")
    encoder_dirs = [folder / name for name in ("text_encoder", "text_encoder_2") if (folder / name).is_dir()]
    if not encoder_dirs:
        _require_dir(folder, "text_encoder")
    configs = [_read_json(path / "config.json", what="the config of a text encoder") for path in encoder_dirs]
    try:
        family = detect_family(unet_config, configs)
    except BaseModelError as error:
        raise BaseModelError(f"{folder}: {error}") from error
    for facts in family.text_encoders:
        _require_dir(folder, facts.component)
        _require_dir(folder, facts.tokenizer)
    return family


def _require_dir(folder: Path, name: str) -> None:
    if not (folder / name).is_dir():
        raise BaseModelError(f"{folder} has no folder {name!r}: the copy of the base model is incomplete.")


def _read_json(path: Path, *, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise BaseModelError(f"{path.parent} is not {what}: it has no {path.name}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaseModelError(f"{path} is not valid JSON.") from error
    if not isinstance(content, dict):
        raise BaseModelError(f"{path} should hold a JSON object.")
    return content


def _diffusers_class(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)


def _autoencoder_class(vae_dir: Path) -> Any:
    name = _read_json(vae_dir / "config.json", what="the config of the VAE").get("_class_name", "AutoencoderKL")
    if name not in _AUTOENCODERS:
        raise BaseModelError(f"{vae_dir} is a {name}; the studio reads {' and '.join(_AUTOENCODERS)}.")
    return _diffusers_class(name)


def _transformers_class(*, projection: bool) -> Any:
    import transformers

    return transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel


def _load_tokenizer(tokenizer_dir: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(tokenizer_dir, local_files_only=True)


def _load_scheduler(scheduler_dir: Path) -> Any:
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    config = _read_json(scheduler_dir / "scheduler_config.json", what="the config of the scheduler")
    scheduler_class = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)):
        raise BaseModelError(f"{scheduler_dir} names a scheduler that diffusers does not know: {config.get('_class_name')!r}.")
    with loading(f"scheduler in {scheduler_dir}"):
        return cast("Any", scheduler_class).from_config(config)
