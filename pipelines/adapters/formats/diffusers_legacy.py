"""What diffusers wrote before PEFT, and in passing: read only.

* up to 0.21: `unet.<…>.attn1.processor.to_q_lora.down.weight` (with or without `unet.`), in text encoders
  `text_encoder.text_model.<…>.self_attn.to_q_lora.down.weight` and `.mlp.fc1.lora_linear_layer.down.weight`;
* later scripts: `unet.<…>.to_q.lora.down.weight`, and `.q_proj.lora_linear_layer.down.weight` in text encoders;
* `convert_state_dict_to_diffusers` on a LoRA with convolutions mixes the latter with PEFT's `lora_A` keys in one file, of
  which diffusers itself then loads a part only. Here all of them count.

None of them has alphas, unless the header has PEFT's configuration; alpha = rank then.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from studio.pipelines.adapters.patches import LoRAPatch, Patch
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.adapters.serialization.dialect import (
    Dialect,
    LayerCodec,
    Parts,
    Scale,
    Shapes,
    decode_layers,
    group_by_layer,
)
from studio.pipelines.adapters.serialization.old_attention_processors import has_kronecker_shapes
from studio.pipelines.adapters.serialization.peft_config import PeftScales

_OLD_KEY = re.compile(
    r"(?:(unet|text_encoder|text_encoder_2)\.)?([\w.]+?)"
    r"(?:(?:\.processor)?\.to_(q|k|v|out)_lora|\.lora_linear_layer|\.lora)\.(down|up)\.weight"
)
_PEFT_KEY = re.compile(r"(unet|text_encoder|text_encoder_2)\.([\w.]+?)\.lora_(A|B)\.weight")
_PROJECTIONS = {
    "unet": {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"},
    "text": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"},
}


def detect(shapes: Shapes) -> bool:
    """Whether every key is an old one or, beside at least one old one, a PEFT one, and it is no DiffuseKronA file."""
    ours = any(_OLD_KEY.fullmatch(key) for key in shapes) and all(_parse(key) is not None for key in shapes)
    return ours and not has_kronecker_shapes(shapes)


def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[ParameterPath, Patch]:
    """Patches from a file's tensors and, if there is one, PEFT's configuration in its metadata."""
    return decode_layers(group_by_layer(tensors, _parse), _CODECS, PeftScales(metadata))


def _parse(key: str) -> tuple[ParameterPath, str] | None:
    match = _PEFT_KEY.fullmatch(key)
    if match is not None:
        return ParameterPath(match[1], match[2]), "down" if match[3] == "A" else "up"
    match = _OLD_KEY.fullmatch(key)
    if match is None:
        return None
    component, module = match[1], match[2]
    if component is None:
        if not module.startswith(("down_blocks.", "mid_block.", "up_blocks.")):
            return None
        component = "unet"
    if match[3] is not None:
        module += "." + _PROJECTIONS["unet" if component == "unet" else "text"][match[3]]
    return ParameterPath(component, module), match[4]


def _decode_lora(parts: Parts, scale: Scale) -> LoRAPatch:
    down, up = parts["down"], parts["up"]
    return LoRAPatch(down, up, float(down.shape[0]) if scale.alpha is None else scale.alpha, scale.use_rslora)


def _encode_lora(patch: LoRAPatch) -> dict[str, Tensor]:
    return {"down": patch.down, "up": patch.up}


_CODECS = (LayerCodec(LoRAPatch, frozenset({"down", "up"}), frozenset(), _decode_lora, _encode_lora),)

DIFFUSERS_LEGACY = Dialect("diffusers-legacy", "diffusers before PEFT", detect, read)
