"""Names of parameters that are the same in every library version and in every file."""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import nn

_TEXT_MODEL = "text_model."


class ParameterPath(NamedTuple):
    """Where a patch acts.

    Attributes:
        component: `unet`, `text_encoder` or `text_encoder_2`.
        module: dotted path inside the component, in the ecosystem's spelling. For text encoders this always begins with
            `text_model.` (or is `text_projection`), as in every published file, whatever transformers calls it today.
        parameter: `weight` or `bias`.
    """

    component: str
    module: str
    parameter: str = "weight"

    def __str__(self) -> str:
        return ".".join(part for part in self if part)


def is_flattened_text_encoder(model: nn.Module) -> bool:
    """Whether `model` is a CLIP text model without the `text_model` level.

    transformers took that level out of CLIPTextModel in 5.6 and left it in CLIPTextModelWithProjection; files keep it.
    """
    children = {name for name, _ in model.named_children()}
    return {"embeddings", "encoder", "final_layer_norm"} <= children


def canonical_name(model: nn.Module, actual_name: str) -> str:
    """The ecosystem's name of the module that `model.named_modules()` calls `actual_name`."""
    return _TEXT_MODEL + actual_name if is_flattened_text_encoder(model) else actual_name


def find_module(model: nn.Module, module: str) -> nn.Module | None:
    """The module with the canonical name `module`, in either layout of the text encoder; None if there is none."""
    actual_name = module.removeprefix(_TEXT_MODEL) if is_flattened_text_encoder(model) else module
    try:
        return model.get_submodule(actual_name)
    except AttributeError:
        return None


def target_modules(model: nn.Module, pattern: str) -> dict[str, nn.Module]:
    """Linear and Conv2d modules whose canonical name is a full match of the regular expression `pattern`.

    Returns:
        canonical name -> module, in the model's own order.
    """
    regex = re.compile(pattern)
    names = ((canonical_name(model, name), module) for name, module in model.named_modules())
    return {name: module for name, module in names if isinstance(module, nn.Linear | nn.Conv2d) and regex.fullmatch(name)}
