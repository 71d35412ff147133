"""Keys and values of words, kept over generations.

They depend on the words' features and on the layer, and on nothing that changes from step to step. Within one generation they
are computed once (see `AttentionControl.text`); here they are also found again by the next one with the same words and the
same adapters. The key says all that they depend on, so nothing needs to be told when something changes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from studio.pipelines.adapters import Adapter
from studio.pipelines.adapters.patched_forward import PatchedForward

Pair = tuple[Tensor, Tensor]
MOST_BYTES = 256 * 2**20

_hashes: WeakKeyDictionary[Adapter, str] = WeakKeyDictionary()


class TextCache:
    """The last used keys and values of one model, up to so many bytes."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._pairs: OrderedDict[tuple[Any, ...], Pair] = OrderedDict()
        self._bytes = 0
        self.hits = 0

    def get(self, key: tuple[Any, ...]) -> Pair | None:
        """What was kept, now the newest; None if there is nothing."""
        pair = self._pairs.get(key)
        if pair is not None:
            self._pairs.move_to_end(key)
            self.hits += 1
        return pair

    def put(self, key: tuple[Any, ...], pair: Pair) -> None:
        """Keep it, and forget the oldest if there are too many. Kept are copies: nothing that they are parts of."""
        if key in self._pairs:
            return
        own = (pair[0].detach().clone(), pair[1].detach().clone())
        self._pairs[key] = own
        self._bytes += _size(own)
        while self._bytes > self.most_bytes:
            _, oldest = self._pairs.popitem(last=False)
            self._bytes -= _size(oldest)

    def clear(self) -> None:
        """Forget all of them, and give their memory back."""
        self._pairs.clear()
        self._bytes = 0


_caches: WeakKeyDictionary[nn.Module, TextCache] = WeakKeyDictionary()


def cache_of(unet: nn.Module) -> TextCache:
    """The model's cache."""
    if unet not in _caches:
        _caches[unet] = TextCache()
    return _caches[unet]


def text_key(attention: Any, layer: str, text_hash: str) -> tuple[Any, ...] | None:
    """What the keys and values of a layer depend on: words, layer, the base's own weights, their type and place, and which
    adapters act there, how strongly and on which rows. None if something acts whose numbers cannot be told, or that trains.

    Args:
        attention: the layer, with whatever is open on it. text_hash: `hash_of` the words' features.
    """
    parts: list[Any] = [layer, text_hash]
    for module in (attention.to_k, attention.to_v):
        weight = module._parameters["weight"]
        watched = module._forward_hooks or module._forward_pre_hooks
        if weight is None or weight.is_meta or weight.is_inference() or weight.requires_grad or watched:
            return None
        if module._parameters.get("bias") is not None:
            return None
        # The parameter's identity, place and version are the base: a merge or a load changes one of them.
        parts.append((id(weight), weight.data_ptr(), weight._version, weight.dtype, str(weight.device)))
        forward = module.__dict__.get("forward")
        if forward is None:
            continue
        if not isinstance(forward, PatchedForward):
            return None
        for entry in forward.entries:
            if entry.trains or entry.weight.canvas is not None:
                return None
            parts.append((hash_of_adapter(entry.route.adapter), forward.merging, *_numbers(entry.weight)))
    return tuple(parts)


def hash_of(features: Tensor) -> str:
    """16 hex digits of the SHA-256 of the numbers, with shape and type."""
    plain = features.detach().to("cpu").contiguous()
    digest = hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode())
    digest.update(plain.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def hash_of_adapter(adapter: Adapter) -> str:
    """The adapter's content hash, computed once for each object."""
    if adapter not in _hashes:
        _hashes[adapter] = adapter.content_hash()
    return _hashes[adapter]


def _numbers(weight: Any) -> tuple[Any, ...]:
    strength = weight.strength
    numbers = tuple(strength.flatten().tolist()) if isinstance(strength, Tensor) else strength
    return numbers, None if weight.rows is None else tuple(weight.rows.tolist())


def _size(pair: Pair) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in pair)
