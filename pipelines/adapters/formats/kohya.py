"""kohya's dialect, which every other tool reads: `lora_unet_<path with underscores>.lora_down.weight`, `.lora_up.weight`.

The scale is a tensor `.alpha`. A DoRA adds LyCORIS' `.dora_scale`, `[out, 1]` or `[out, 1, 1, 1]`. Text encoders are
`lora_te_` (SD1.x, SD2.x) or `lora_te1_` and `lora_te2_` (SDXL). For SDXL the UNet's names are LDM's, as sd-scripts writes
them; both are read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.patches import Patch
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.adapters.serialization.dialect import (
    Dialect,
    FileContent,
    Scale,
    decode_layers,
    encode_layers,
    group_by_layer,
)
from studio.pipelines.adapters.serialization.kohya_layers import (
    LORA_CODECS,
    LYCORIS_PARTS,
    kohya_key_of,
    parse_kohya_key,
    part_of,
)
from studio.pipelines.families import ModelFamily


def detect(keys: Collection[str]) -> bool:
    """Whether every key has one of kohya's prefixes, and none is of a kind that only LyCORIS has."""
    parts = [part_of(key) for key in keys]
    return len(parts) > 0 and all(part is not None and not part.startswith(LYCORIS_PARTS) for part in parts)


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[ParameterPath, Patch]:
    """Patches from a file's tensors; the metadata is not needed."""
    return decode_layers(group_by_layer(tensors, parse_kohya_key), LORA_CODECS, lambda path: Scale())


def write(adapter: Adapter, family: ModelFamily) -> FileContent:
    """Tensors with the names that files for `family` have."""
    return FileContent(encode_layers(adapter, LORA_CODECS, kohya_key_of(family)), {})


KOHYA = Dialect("kohya", "kohya / sd-scripts", detect, read, write)
