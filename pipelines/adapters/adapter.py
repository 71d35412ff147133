"""The adapter: a named set of patches, as a value that never holds or changes a model."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar

import torch
from torch import Tensor

from studio.pipelines.adapters.patches.base import Patch, at_least_float32
from studio.pipelines.adapters.paths import ParameterPath


@dataclass(frozen=True, kw_only=True)
class AdapterInfo:
    """What is known about an adapter besides its tensors. Everything but the name may be unknown.

    Attributes:
        name: title for people.
        type: kind of its patches ("lora", "dora", …; "mixed" if there are several).
        family: name of the model family it was made for.
        base_name: the base model, as the user named it. base_hash: SHA-256 of its weights, 64 hex digits.
        trigger: the words that call the concept, as "ohwx robot". class_noun: what the concept is one of.
        roles: what it is for: "subject", "style", …
        role_blocks: role -> prefixes of module paths, where its halves sit in blocks of their own (see `roles`).
        created: ISO 8601 date and time.
        prediction_type: "epsilon" or "v_prediction". resolution: (width, height) it was trained at, in pixels.
        description, author, license: free text. tags: key words.
        training: how it was made, in sd-scripts' keys without "ss_" (see `formats.metadata.TrainingRecord`).
        thumbnail: a small picture as a data URL.
    """

    name: str
    type: str = "lora"
    family: str | None = None
    base_name: str | None = None
    base_hash: str | None = None
    trigger: str | None = None
    class_noun: str | None = None
    roles: tuple[str, ...] = ()
    role_blocks: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    created: str | None = None
    prediction_type: str | None = None
    resolution: tuple[int, int] | None = None
    description: str | None = None
    author: str | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()
    training: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    thumbnail: str | None = None


@dataclass(frozen=True, eq=False)
class Adapter:
    """A set of patches with what is known about them.

    Attributes:
        info: name, family, trigger and so on.
        patches: what changes, by where it acts.
    """

    info: AdapterInfo
    patches: Mapping[ParameterPath, Patch]

    @property
    def type(self) -> str:
        """The kind of its patches, or "mixed"; what `info.type` should say."""
        kinds = self.kinds()
        return next(iter(kinds)) if len(kinds) == 1 else "mixed"

    def num_parameters(self) -> int:
        """How many numbers all patches hold together."""
        return sum(patch.num_parameters() for patch in self.patches.values())

    def named_tensors(self) -> dict[str, Tensor]:
        """Every tensor by a unique dotted name, as `unet.….to_q.weight.down`; the tensors themselves, not copies."""
        return {f"{path}.{name}": tensor for path, patch in self.patches.items() for name, tensor in patch.parameters().items()}

    def components(self) -> tuple[str, ...]:
        """The components it changes, in the order of its patches."""
        return tuple(dict.fromkeys(path.component for path in self.patches))

    def kinds(self) -> dict[str, int]:
        """How many patches there are of each kind, the most frequent first."""
        return _counted(patch.kind for patch in self.patches.values())

    def ranks(self) -> dict[int, int]:
        """How many patches there are of each rank (those that have one), the most frequent first."""
        ranks = (getattr(patch, "rank", None) for patch in self.patches.values())
        return _counted(rank for rank in ranks if rank is not None)

    def alphas(self) -> dict[float, int]:
        """How many patches there are of each alpha (those that have one), the most frequent first."""
        alphas = (getattr(patch, "alpha", None) for patch in self.patches.values())
        return _counted(alpha for alpha in alphas if alpha is not None)

    def factors(self) -> dict[str, int]:
        """How many Kronecker products there are with which first factor, as "64×4" (out×in), the most frequent first."""
        sizes = (getattr(patch, "factors", None) for patch in self.patches.values())
        return _counted(f"{size[0]}×{size[1]}" for size in sizes if size is not None)

    def content_hash(self) -> str:
        """SHA-256, 64 hex digits, of what the adapter does: paths, kinds, scales and values.

        Name, metadata, dialect and order do not count, nor does the type a value is stored in: a float16 tensor and the
        same values in float32 are equal.
        """
        digest = hashlib.sha256()
        for path in sorted(self.patches):
            patch = self.patches[path]
            settings = {name: _rounded(value) for name, value in patch.settings().items()}
            digest.update(json.dumps([*path, patch.kind, settings], sort_keys=True).encode())
            for name, tensor in patch.parameters().items():
                values = at_least_float32(tensor.detach()).to(device="cpu", dtype=torch.float32).contiguous()
                digest.update(f"{name}{[size for size in values.shape if size != 1]}".encode())
                digest.update(values.numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Adapter:
        """The same adapter with its tensors elsewhere or in another type."""
        return replace(self, patches={path: patch.to(device, dtype) for path, patch in self.patches.items()})


Countable = TypeVar("Countable", int, float, str)


def _counted(values: Iterable[Countable]) -> dict[Countable, int]:
    """Value -> how often, the most frequent first; among equals the smaller value, whatever the order of the patches."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _rounded(value: float | bool | str) -> float | bool | str:
    return float(f"{value:.6g}") if isinstance(value, float) else value
