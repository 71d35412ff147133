"""Text of their own for chosen attention stacks, in one pass of the UNet.

A UNet hands the same text features to all of its cross-attention. Frenkel et al. (2024, B-LoRA) hand another prompt to one
stack of transformer blocks, to see what that stack decides ("prompt injection"), and to keep the words for the content away
from the rest of the model (their appendix B).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from studio.pipelines.errors import UserError

_TEXT = "encoder_hidden_states"


def attention_stacks(unet: nn.Module) -> tuple[str, ...]:
    """Module paths of the UNet's stacks of transformer blocks, from input to output: `up_blocks.0.attentions.1` and so on."""
    order = ("down_blocks", "mid_block", "up_blocks")
    found = [
        name for name, module in unet.named_modules() if isinstance(getattr(module, "transformer_blocks", None), nn.ModuleList)
    ]
    return tuple(sorted(found, key=lambda name: order.index(name.split(".")[0]) if name.split(".")[0] in order else len(order)))


def check_stacks(unet: nn.Module, names: Sequence[str]) -> None:
    """`UserError`, with the nearest name, unless all of `names` are attention stacks of the UNet."""
    known = attention_stacks(unet)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(f"The base model has no attention stack {name!r}.{hint} Its stacks are: {', '.join(known)}.")


@contextmanager
def block_texts(unet: nn.Module, texts: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block, each stack named in `texts` reads these features instead of what the UNet is called with.

    Hooks do it; afterwards, also after an exception, they are gone and the UNet is what it was.

    Args:
        texts: stack -> features `[B, T, D]`, a row per row of the batch as the UNet sees it, guidance branches included.

    Raises:
        UserError: the UNet has no such stack.
    """
    if texts:  # the loop opens this at every step, mostly for nothing
        check_stacks(unet, list(texts))
    with ExitStack() as hooks:
        for name, features in texts.items():
            handle = unet.get_submodule(name).register_forward_pre_hook(_reader_of(features), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def _reader_of(features: Tensor) -> Any:
    def replace_text(
        module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        present = named.get(_TEXT)
        assert isinstance(present, Tensor), f"{type(module).__name__} was called without {_TEXT}="
        assert present.shape == features.shape, f"text {list(features.shape)} for a batch with {list(present.shape)}"
        return arguments, named | {_TEXT: features.to(device=present.device, dtype=present.dtype)}

    return replace_text
