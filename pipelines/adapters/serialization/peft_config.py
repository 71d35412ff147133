"""The scales of a PEFT or diffusers file: `lora_adapter_metadata`, PEFT's LoraConfig of each component as JSON in the header."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.patches import DoRAPatch, LoRAPatch, Patch
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.adapters.serialization.dialect import Scale
from studio.pipelines.errors import AdapterFileError

Number = TypeVar("Number", int, float)

METADATA_KEY = "lora_adapter_metadata"


class PeftScales:
    """Alpha and rsLoRA flag of each layer, as LoraConfig gives them."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._config = _parse(metadata.get(METADATA_KEY))

    def __call__(self, path: ParameterPath) -> Scale:
        """The scale at `path`; alpha None (= rank) where the file says nothing, as diffusers has it."""
        prefix = f"{path.component}."
        if f"{prefix}lora_alpha" not in self._config:
            return Scale()
        alpha = _number_at(self._config, path, "lora_alpha", "alpha_pattern")
        return Scale(alpha, self._config.get(f"{prefix}use_rslora") is True)


class PeftLoKrScales:
    """alpha / r of each layer, as LoKrConfig gives them."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._config = _parse(metadata.get(METADATA_KEY))

    def __call__(self, path: ParameterPath) -> float:
        """The scale at `path`; 1 where the file says nothing, as diffusers has it."""
        if not {f"{path.component}.alpha", f"{path.component}.r"} <= self._config.keys():
            return 1.0
        rank = _number_at(self._config, path, "r", "rank_pattern")
        if rank <= 0:
            raise AdapterFileError(f"its metadata gives {path} the rank {rank:g}.")
        return _number_at(self._config, path, "alpha", "alpha_pattern") / rank


def peft_config(adapter: Adapter) -> dict[str, str]:
    """The metadata entry for `adapter`.

    Layers of a text encoder are named without `text_model.`, so that PEFT, which compares the ends of names, finds them in
    both of transformers' layouts.

    Raises:
        AdapterFileError: a component mixes LoRA and DoRA, or rsLoRA with others, which LoraConfig cannot say.
    """
    config: dict[str, Any] = {}
    for component in adapter.components():
        own_patches = ((path.module, patch) for path, patch in adapter.patches.items() if path.component == component)
        layers = {module.removeprefix("text_model."): patch for module, patch in own_patches}
        loras = {name: _lora_inside(patch) for name, patch in layers.items()}
        ranks = {name: lora.rank for name, lora in loras.items()}
        alphas = {name: _number(lora.alpha) for name, lora in loras.items()}
        rank, alpha = _most_common(ranks), _most_common(alphas)
        own = {
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": sorted(layers),
            "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
            "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
            "use_dora": _same(component, "DoRA", [isinstance(patch, DoRAPatch) for patch in layers.values()]),
            "use_rslora": _same(component, "rsLoRA", [lora.use_rslora for lora in loras.values()]),
            "bias": "none",
            "lora_bias": False,
        }
        config |= {f"{component}.{name}": value for name, value in own.items()}
    return {METADATA_KEY: json.dumps(config, indent=2, sort_keys=True)}


def lokr_config(adapter: Adapter, decompose_factor: int, rank: int) -> dict[str, str]:
    """The metadata entry for an adapter of LoKr layers with full factors, as PEFT's LoKrConfig of each component."""
    config: dict[str, Any] = {}
    for component in adapter.components():
        own = {
            "r": rank,
            "alpha": rank,
            "decompose_factor": decompose_factor,
            "target_modules": sorted(path.module for path in adapter.patches if path.component == component),
        }
        config |= {f"{component}.{name}": value for name, value in own.items()}
    return {METADATA_KEY: json.dumps(config, indent=2, sort_keys=True)}


def _lora_inside(patch: Patch) -> LoRAPatch:
    lora = patch.lora if isinstance(patch, DoRAPatch) else patch
    if not isinstance(lora, LoRAPatch):
        raise AdapterFileError(f"LoraConfig says nothing of {patch.kind} layers; export another format.")
    return lora


def _parse(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise AdapterFileError(f"its metadata entry {METADATA_KEY} is not a JSON object.")
    return config


def _number_at(config: Mapping[str, Any], path: ParameterPath, key: str, patterns_key: str) -> float:
    """What a PEFT configuration gives the layer at `path`: the first pattern that means it, or the common value."""
    patterns = config.get(f"{path.component}.{patterns_key}", {})
    if not isinstance(patterns, dict):
        raise AdapterFileError(f"its metadata gives {path.component}.{patterns_key} in a way that PEFT does not.")
    values = (value for pattern, value in patterns.items() if _matches(pattern, path.module))
    number = next(values, config[f"{path.component}.{key}"])
    if isinstance(number, bool) or not isinstance(number, int | float):
        what = "rank" if key == "r" else "alpha"
        raise AdapterFileError(f"its metadata gives {path} the {what} {number!r}, which is no number.")
    return float(number)


def _matches(pattern: str, module: str) -> bool:
    """Whether a PEFT pattern means `module`: its whole name or its end. Only names are taken, no regular expressions."""
    name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if re.search(r"[^\w.]", name):
        raise AdapterFileError(f"its metadata has the pattern {pattern!r}, a regular expression, where a module's name is read.")
    if pattern.startswith("^"):
        return name in (module, module.removeprefix("text_model."))
    return module == name or module.endswith(f".{name}")


def _most_common(values: Mapping[str, Number]) -> Number:
    counts = Counter(values.values())
    return min(counts, key=lambda value: (-counts[value], value))  # among equals the smaller, whatever their order


def _number(alpha: float) -> float:
    return int(alpha) if float(alpha).is_integer() else float(alpha)


def _same(component: str, what: str, flags: list[bool]) -> bool:
    if any(flags) and not all(flags):
        raise AdapterFileError(
            f"Some layers of the {component} use {what} and some do not; a PEFT file cannot say so. Export kohya."
        )
    return any(flags)
