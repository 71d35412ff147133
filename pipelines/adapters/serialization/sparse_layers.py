"""How sparse changes stand in a file: values, gap-coded positions, shapes; and the rule and the base in the header.

`<component>.<module>.<parameter>.sparse_values` holds the changes, `.sparse_gaps` the positions as the gaps between them
(about a byte each, see `studio.kernels.sparse_index`), `.sparse_shape` the parameter's shape. The header's `studio.sparse`
is JSON: what the entries were chosen by, the digest of their positions, and samples of the base's values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from studio.kernels.sparse_index import LARGEST_TENSOR, pack_gaps, unpack_gaps
from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.base_samples import BaseSamples
from studio.pipelines.adapters.patches import Patch, SparsePatch
from studio.pipelines.adapters.patches.sparse import digest_of
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.adapters.serialization.dialect import FileContent, Parts, group_by_layer
from studio.pipelines.errors import AdapterFileError, AdapterMismatchError

METADATA_KEY = "studio.sparse"
FORMAT = 1
VALUES, GAPS, SHAPE = "sparse_values", "sparse_gaps", "sparse_shape"
_KEY = re.compile(r"(\w+)\.(?:([\w.]+)\.)?(\w+)\.(sparse_values|sparse_gaps|sparse_shape)")


def parse_sparse_key(key: str) -> tuple[ParameterPath, str] | None:
    """Where a tensor belongs, and which part it is; None for a key of another kind."""
    match = _KEY.fullmatch(key)
    return None if match is None else (ParameterPath(match[1], match[2] or "", match[3]), match[4])


def is_exact_part(key: str) -> bool:
    """Whether the tensor holds positions or a shape, which are no adapter's numbers and keep their type."""
    return key.endswith((f".{GAPS}", f".{SHAPE}"))


def write_sparse(adapter: Adapter, *, with_positions: bool) -> FileContent:
    """The tensors and the header entry of an adapter of sparse changes only.

    Raises:
        AdapterFileError: a patch is of another kind, or has no positions to write, or no rule to find them by.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    base_name = None
    for path, patch in adapter.patches.items():
        if not isinstance(patch, SparsePatch):
            raise AdapterFileError(f"This file format has no way to write the {patch.kind} patch of {path}; export another one.")
        if len(patch.values) == 0:
            continue
        tensors[f"{path}.{VALUES}"] = patch.values
        tensors[f"{path}.{SHAPE}"] = torch.tensor(patch.shape, dtype=torch.int64)
        if with_positions:
            if patch.indices is None:
                raise AdapterFileError(
                    f"The positions of {path} are found in the base model's weights; give the base model to write them out."
                )
            tensors[f"{path}.{GAPS}"] = pack_gaps(patch.indices)
        elif patch.threshold is None or patch.base is None:
            raise AdapterFileError(f"No rule is known that finds the positions of {path} again; export with --format sparse.")
        samples = None if patch.base is None else patch.base.as_text()
        base_name = base_name if patch.base is None else patch.base.base_name
        facts[str(path)] = {"threshold": patch.threshold, "digest": patch.digest, "base": samples}
    header = {"format": FORMAT, "rule": "|w| < threshold", "base_name": base_name, "tensors": facts}
    return FileContent(tensors, {METADATA_KEY: json.dumps(header, sort_keys=True)})


def read_sparse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[ParameterPath, Patch]:
    """The patches of a file; AdapterFileError if its parts do not fit together."""
    header = _header(metadata.get(METADATA_KEY))
    facts = header.get("tensors")
    patches: dict[ParameterPath, Patch] = {}
    for path, parts in group_by_layer(tensors, parse_sparse_key).items():
        own = facts.get(str(path), {}) if isinstance(facts, dict) else {}
        try:
            patches[path] = _patch(parts, own if isinstance(own, dict) else {}, header.get("base_name"))
        except (AdapterMismatchError, AdapterFileError, ValueError) as error:
            raise AdapterFileError(f"the tensors of {path} do not fit together. {error}") from error
    return patches


def _patch(parts: Parts, facts: Mapping[str, Any], base_name: Any) -> SparsePatch:
    if VALUES not in parts or SHAPE not in parts:
        raise AdapterFileError(f"It has {', '.join(sorted(parts))}, and {VALUES} and {SHAPE} belong to every layer.")
    shape = _shape(parts[SHAPE])
    threshold, digest, samples = facts.get("threshold"), facts.get("digest"), facts.get("base")
    if threshold is not None and not (isinstance(threshold, float | int) and 0 < threshold < math.inf):
        raise AdapterFileError("The threshold in its metadata is no positive number.")
    digest = digest if isinstance(digest, str) else ""
    indices = None
    if GAPS in parts:
        positions = unpack_gaps(parts[GAPS])
        if len(positions) and int(positions[-1]) >= math.prod(shape):
            raise AdapterFileError(f"Its last position is {int(positions[-1])}, outside of a parameter of shape {list(shape)}.")
        indices = positions.to(torch.int32)
        if digest and digest_of(indices) != digest:
            raise AdapterFileError("Its positions are not those it was written with.")
    elif not digest or threshold is None:
        raise AdapterFileError("It has no positions, and its metadata no rule to find them by; the file has lost its metadata.")
    name = base_name if isinstance(base_name, str) else None
    return SparsePatch(
        values=parts[VALUES],
        shape=shape,
        indices=indices,
        threshold=None if threshold is None else float(threshold),
        digest=digest,
        base=BaseSamples.from_text(samples, name) if isinstance(samples, str) else None,
    )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    if tensor.dtype is not torch.int64 or tensor.ndim != 1 or len(tensor) > 8:
        raise AdapterFileError("Its shape is not a short row of whole numbers.")
    shape = tuple(int(size) for size in tensor)
    if any(size < 1 for size in shape) or math.prod(shape) > LARGEST_TENSOR:
        raise AdapterFileError(f"A parameter cannot have the shape {list(shape)}.")
    return shape


def _header(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        header = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise AdapterFileError(f"its metadata entry {METADATA_KEY} is damaged, or of a later version of the studio.")
    return header
