"""An adapter's metadata in a file's header: ModelSpec, sd-scripts' `ss_` keys, and our own.

ModelSpec 1.0.1: https://github.com/Stability-AI/ModelSpec. sd-scripts: `train_network.py`. `studio.adapter` is
`AdapterInfo` as JSON, from which it is read back exactly; from other tools' files as much of it as they say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, Literal

from studio.pipelines.adapters.adapter import Adapter, AdapterInfo
from studio.pipelines.adapters.serialization.role_blocks import read_role_blocks, role_entries
from studio.pipelines.families import FAMILIES, ModelFamily

Redaction = Literal["none", "private", "minimal"]
"""What to leave out: nothing; paths and captions; everything that loading does not need."""

STUDIO_KEY = "studio.adapter"
_PRIVATE_TRAINING = (
    "dataset_dirs",
    "tag_frequency",
    "training_comment",
    "datasets",
    "reg_dataset_dirs",
    "sd_model_name",
    "vae_name",
)
_DERIVED_TRAINING = (
    *("base_model_version", "v2", "network_module", "network_args", "network_dim", "network_alpha"),
    *("sd_model_name", "new_sd_model_hash"),
)
_SEPARATE = ("training", "thumbnail", "role_blocks")  # kept under keys of their own, where other tools look


def build_metadata(
    adapter: Adapter, family: ModelFamily, *, ldm_names: bool, tensors_hash: str, redact: Redaction
) -> dict[str, str]:
    """Everything but what the dialect itself needs.

    Args:
        ldm_names: whether the UNet's modules have LDM's names in this file.
        tensors_hash: SHA-256 of the file's bytes after the header, 64 hex digits.
        redact: "minimal" gives only the entry that every safetensors file of torch has.
    """
    if redact == "minimal":
        return {"format": "pt"}
    info = adapter.info if redact == "none" else _without_private(adapter.info)
    return {
        "format": "pt",
        **_modelspec(info, family, ldm_names, tensors_hash),
        **_sd_scripts(info, adapter, family, tensors_hash),
        STUDIO_KEY: json.dumps(
            {name: value for name, value in _plain(info).items() if name not in _SEPARATE}, ensure_ascii=False
        ),
        **role_entries(info.role_blocks),
    }


def read_info(metadata: Mapping[str, str], *, default_name: str) -> AdapterInfo:
    """What a file says about itself. Entries that cannot be understood are passed over: they change no picture."""
    training = {key.removeprefix("ss_"): value for key, value in metadata.items() if key.startswith("ss_")}
    thumbnail = metadata.get("modelspec.thumbnail")
    own = _own_info(metadata)
    if own is not None:
        as_given = {key: value for key, value in training.items() if key not in _DERIVED_TRAINING}
        return replace(own, training=as_given, thumbnail=thumbnail, role_blocks=read_role_blocks(metadata))
    spec = {key.removeprefix("modelspec."): value for key, value in metadata.items() if key.startswith("modelspec.")}
    return AdapterInfo(
        name=_first(spec.get("title"), training.get("output_name"), default_name),
        family=_family_name(spec.get("architecture"), training.get("base_model_version")),
        base_name=training.get("sd_model_name"),
        base_hash=training.get("new_sd_model_hash"),
        trigger=spec.get("trigger_phrase"),
        created=spec.get("date"),
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}.get(spec.get("prediction_type", "")),
        resolution=_resolution(spec.get("resolution")),
        description=spec.get("description"),
        author=spec.get("author"),
        license=spec.get("license"),
        tags=tuple(tag.strip() for tag in spec.get("tags", "").split(",") if tag.strip()),
        training=training,
        thumbnail=thumbnail,
        role_blocks=read_role_blocks(metadata),
    )


def _modelspec(info: AdapterInfo, family: ModelFamily, ldm_names: bool, tensors_hash: str) -> dict[str, str]:
    width, height = (family.default_size, family.default_size) if info.resolution is None else info.resolution
    runs = "Stability-AI/generative-models" if ldm_names else "huggingface/diffusers"
    prediction_type = family.prediction_type if info.prediction_type is None else info.prediction_type
    entries = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{family.modelspec_architecture}/lora",
        "implementation": f"https://github.com/{runs}",
        "title": info.name,
        "resolution": f"{width}x{height}",
        "description": info.description,
        "author": info.author,
        "license": info.license,
        "date": info.created,
        "hash_sha256": f"0x{tensors_hash}",
        "trigger_phrase": info.trigger,
        "usage_hint": _usage_hint(info),
        "prediction_type": "v" if prediction_type == "v_prediction" else "epsilon",
        "tags": ", ".join(info.tags) if info.tags else None,
        "thumbnail": info.thumbnail,
    }
    return {f"modelspec.{key}": value for key, value in entries.items() if value is not None}


def _usage_hint(info: AdapterInfo) -> str | None:
    return None if info.trigger is None else f"Put {info.trigger!r} into the prompt, as in: a photo of {info.trigger}."


def _sd_scripts(info: AdapterInfo, adapter: Adapter, family: ModelFamily, tensors_hash: str) -> dict[str, str]:
    rank, alpha = _rank_and_alpha(adapter)
    entries = {
        **info.training,
        "base_model_version": family.ss_base_model_version,
        "v2": str(family.name == "sd2"),
        "network_module": "networks.lora" if set(adapter.kinds()) == {"lora"} else "lycoris.kohya",
        "network_args": _network_args(adapter),
        "network_dim": rank,
        "network_alpha": alpha,
        "sd_model_name": info.base_name,
        "new_sd_model_hash": info.base_hash,
    }
    known = {f"ss_{key}": value for key, value in entries.items() if value is not None}
    return {**known, "sshs_model_hash": tensors_hash}


def _network_args(adapter: Adapter) -> str | None:
    """LyCORIS' arguments for the most frequent kind of patch that is no LoRA, as its own training would have had them."""
    known: dict[str, dict[str, Any]] = {
        "dora": {"algo": "lora", "dora_wd": "True"},
        "full": {"algo": "full"},
        "loha": {"algo": "loha"},
        "lokr": {"algo": "lokr", "factor": _lokr_factor(adapter), "full_matrix": "True"},
    }
    return next((json.dumps(known[kind]) for kind in adapter.kinds() if kind in known), None)


def _lokr_factor(adapter: Adapter) -> str:
    """Smaller side of the most frequent first factor: LyCORIS' argument has one number for both sides."""
    return min(next(iter(adapter.factors()), "-1").split("×"), key=int)


def _rank_and_alpha(adapter: Adapter) -> tuple[str | None, str | None]:
    """The most frequent rank, and the alpha that belongs to it where scale = alpha / rank."""
    for rank in adapter.ranks():
        scales = {patch.settings().get("scale") for patch in adapter.patches.values() if getattr(patch, "rank", None) == rank}
        numbers = sorted(scale for scale in scales if isinstance(scale, int | float))
        return str(rank), f"{numbers[0] * rank:g}" if numbers else None
    return None, None


def _without_private(info: AdapterInfo) -> AdapterInfo:
    training = {key: _without_path(value) for key, value in info.training.items() if key not in _PRIVATE_TRAINING}
    return replace(
        info,
        name=_without_path(info.name),
        base_name=None if info.base_name is None else _without_path(info.base_name),
        description=None if info.description is None else _without_path(info.description),
        training=training,
    )


def _without_path(text: str) -> str:
    """`text`, or only the last part of it if it is an absolute path of this or another system."""
    if re.match(r"(/|~|\.{1,2}[/\\]|file:)", text):
        return PurePosixPath(text).name
    if re.match(r"([A-Za-z]:[/\\]|\\\\)", text):
        return PureWindowsPath(text).name
    return text


def _plain(info: AdapterInfo) -> dict[str, Any]:
    return {field.name: getattr(info, field.name) for field in fields(info)}


def _own_info(metadata: Mapping[str, str]) -> AdapterInfo | None:
    try:
        content = json.loads(metadata.get(STUDIO_KEY, "null"))
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("name"), str):
        return None
    known = {name: content[name] for name in _plain(AdapterInfo(name="")) if name in content and name not in _SEPARATE}
    for name, value in known.items():
        if name in ("roles", "tags"):
            known[name] = tuple(str(item) for item in value) if isinstance(value, list) else ()
        elif name == "resolution":
            is_pair = isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value)
            known[name] = tuple(value) if is_pair else None
        elif not isinstance(value, str | None):
            known[name] = None if name != "type" else "lora"
    return AdapterInfo(**known)


def _family_name(architecture: str | None, base_model_version: str | None) -> str | None:
    named = "" if architecture is None else architecture.split("/")[0]
    for family in FAMILIES:
        if named == family.modelspec_architecture or base_model_version == family.ss_base_model_version:
            return family.name
    return None


def _resolution(text: str | None) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text or "")
    return None if match is None else (int(match[1]), int(match[2] or match[1]))


def _first(*texts: str | None) -> str:
    return next(text for text in texts if text)
