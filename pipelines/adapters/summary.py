"""What an adapter file is, in the words and numbers that a person wants to see."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from studio.pipelines.adapters.adapter import Adapter, AdapterInfo
from studio.pipelines.adapters.files import dialect_of, load_adapter
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.adapters.serialization.header import read_header

PARTS = ("self-attention", "cross-attention", "feed-forward", "projection", "convolution", "other")
"""What a layer can be a part of, in the order of a transformer block and its surroundings."""

_PART_PATTERNS = (
    ("self-attention", re.compile(r".*\.(attn1|self_attn)\..*")),
    ("cross-attention", re.compile(r".*\.attn2\..*")),
    ("feed-forward", re.compile(r".*\.(ff|mlp)\..*")),
    ("projection", re.compile(r".*\.proj_(in|out)")),
    ("convolution", re.compile(r"(.*\.)?(conv|conv1|conv2|conv_shortcut|conv_in|conv_out)")),
)


@dataclass(frozen=True, kw_only=True)
class AdapterSummary:
    """A file's facts.

    Attributes:
        path: the file. file_bytes: its size. sha256: of the whole file; other tools show the first ten digits.
        dialect: short name of the file format. dialect_title: for people.
        info: what the file says about itself.
        kinds, ranks, alphas: how many layers have which, the most frequent first. factors: the same of Kronecker products'
            first factors, as "64×4".
        num_parameters, num_tensors: counts. dtypes: the types the tensors are stored in.
        targets: component and block -> part (see `PARTS`) -> number of layers.
        content_hash: equal for files that do the same (see `Adapter.content_hash`).
        metadata: the header's, as it is.
    """

    path: Path
    file_bytes: int
    sha256: str
    dialect: str
    dialect_title: str
    info: AdapterInfo
    kinds: Mapping[str, int]
    factors: Mapping[str, int]
    ranks: Mapping[int, int]
    alphas: Mapping[float, int]
    num_parameters: int
    num_tensors: int
    dtypes: tuple[str, ...]
    targets: Mapping[str, Mapping[str, int]]
    content_hash: str
    metadata: Mapping[str, str]


def summarize(path: Path | str) -> AdapterSummary:
    """Read the file at `path` in full and describe it; errors as in `load_adapter`."""
    path = Path(path)
    header = read_header(path)
    dialect = dialect_of(path, header.tensors)
    adapter: Adapter = load_adapter(path)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return AdapterSummary(
        path=path,
        file_bytes=header.file_bytes,
        sha256=sha256,
        dialect=dialect.name,
        dialect_title=dialect.title,
        info=adapter.info,
        kinds=adapter.kinds(),
        factors=adapter.factors(),
        ranks=adapter.ranks(),
        alphas=adapter.alphas(),
        num_parameters=adapter.num_parameters(),
        num_tensors=len(header.tensors),
        dtypes=tuple(sorted({entry.dtype for entry in header.tensors.values()})),
        targets=targets_by_block(adapter.patches),
        content_hash=adapter.content_hash(),
        metadata=header.metadata,
    )


def targets_by_block(paths: Iterable[ParameterPath]) -> dict[str, dict[str, int]]:
    """How many layers of each part (see `PARTS`) are changed in each block, in the model's order."""
    counts: dict[str, Counter[str]] = {}
    for path in sorted(paths, key=_in_model_order):
        counts.setdefault(_block(path), Counter())[_part(path)] += 1
    return {block: {part: number[part] for part in PARTS if number[part]} for block, number in counts.items()}


def _block(path: ParameterPath) -> str:
    match = re.match(r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.", path.module)
    return path.component if match is None else f"{path.component} {match[1]}"


def _part(path: ParameterPath) -> str:
    return next((part for part, pattern in _PART_PATTERNS if pattern.fullmatch(path.module)), "other")


def _in_model_order(path: ParameterPath) -> tuple[int, str, int, str]:
    components = ("unet", "text_encoder", "text_encoder_2")
    stages = ("down_blocks", "mid_block", "up_blocks")
    stage = path.module.split(".")[0]
    component = components.index(path.component) if path.component in components else len(components)
    return (component, path.component, stages.index(stage) if stage in stages else -1, path.module)
