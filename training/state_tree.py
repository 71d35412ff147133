"""Any nest of dictionaries, lists, numbers and tensors as JSON + named tensors, and back, exactly. No pickle.

Optimizers keep their state in such nests (`state_dict()`); dictionary keys may be integers, tuples occur, floats must come
back bit-equal (Python's JSON writes the shortest text that reads back as the same float).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

Json: TypeAlias = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_TENSOR, _TUPLE, _ITEMS = "$tensor", "$tuple", "$items"


def pack_tree(tree: object, prefix: str) -> tuple[Json, dict[str, Tensor]]:
    """Split `tree` into JSON and tensors named ``prefix.0``, ``prefix.1`` …

    Raises TypeError for a leaf that is neither None, bool, int, float, str nor Tensor.
    """
    tensors: dict[str, Tensor] = {}

    def pack(node: object) -> Json:
        if isinstance(node, Tensor):
            name = f"{prefix}.{len(tensors)}"
            tensors[name] = node.detach()
            return {_TENSOR: name}
        if node is None or isinstance(node, bool | int | float | str):
            return node
        if isinstance(node, Mapping):
            items: list[Json] = [[pack(key), pack(value)] for key, value in node.items()]
            return {_ITEMS: items}
        if isinstance(node, tuple):
            return {_TUPLE: [pack(item) for item in node]}
        if isinstance(node, list):
            return [pack(item) for item in node]
        raise TypeError(f"a {type(node).__name__} can't be kept as JSON and tensors")

    return pack(tree), tensors


def unpack_tree(packed: Json, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack_tree` took apart. Tensors are copies; a tensor that is missing raises KeyError."""
    if isinstance(packed, list):
        return [unpack_tree(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if _TENSOR in packed:
        return tensors[str(packed[_TENSOR])].clone()
    if _TUPLE in packed:
        return tuple(unpack_tree(packed[_TUPLE], tensors))
    items = packed[_ITEMS]
    assert isinstance(items, list)
    return {unpack_tree(key, tensors): unpack_tree(value, tensors) for key, value in unpack_pairs(items)}


def unpack_pairs(items: list[Json]) -> list[tuple[Json, Json]]:
    """[[key, value], …] as pairs."""
    pairs: list[tuple[Json, Json]] = []
    for item in items:
        assert isinstance(item, list) and len(item) == 2
        pairs.append((item[0], item[1]))
    return pairs


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors takes them: on the CPU, contiguous, no two sharing memory."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
