"""The studio's own dialect for sparse changes of weights (SaRA): about 3 bytes a trained weight.

With positions, or, as `SPARSE_VALUES`, without: 2 bytes a trained weight, for readers that have the very base model, in the
precision of training, to find the positions in. Either knows its base again and refuses another. What the tensors are is
said in `studio.pipelines.adapters.serialization.sparse_layers`.
"""

from __future__ import annotations

from collections.abc import Collection

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.serialization.dialect import Dialect, FileContent
from studio.pipelines.adapters.serialization.sparse_layers import GAPS, is_exact_part, parse_sparse_key, read_sparse, write_sparse
from studio.pipelines.families import ModelFamily


def detect(keys: Collection[str]) -> bool:
    """Whether every key is a sparse one, and there are positions."""
    return _all_sparse(keys) and any(key.endswith(f".{GAPS}") for key in keys)


def detect_values(keys: Collection[str]) -> bool:
    """Whether every key is a sparse one, and there are no positions."""
    return _all_sparse(keys) and not any(key.endswith(f".{GAPS}") for key in keys)


def write(adapter: Adapter, family: ModelFamily) -> FileContent:
    """Values and positions; the names are the same for every family."""
    return write_sparse(adapter, with_positions=True)


def write_values(adapter: Adapter, family: ModelFamily) -> FileContent:
    """Values alone."""
    return write_sparse(adapter, with_positions=False)


def _all_sparse(keys: Collection[str]) -> bool:
    return len(keys) > 0 and all(parse_sparse_key(key) is not None for key in keys)


_KINDS = frozenset({"sparse"})

SPARSE = Dialect("sparse", "the studio's, sparse", detect, read_sparse, write, _KINDS, is_exact_part)
SPARSE_VALUES = Dialect(
    "sparse-values", "the studio's, sparse without positions", detect_values, read_sparse, write_values, _KINDS, is_exact_part
)
