"""How a picture was made: everything that decides its pixels, and nothing about the machine it was made on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import __version__
from studio.pipelines.errors import ImageError

if TYPE_CHECKING:
    from studio.pipelines.base_model import BaseModel
    from studio.pipelines.generation import ResolvedRequest


@dataclass(frozen=True, kw_only=True)
class AdapterUse:
    """One adapter that took part.

    Attributes:
        name: the file's name without its ending. strength: the user's slider.
        sha256: of the file, 64 hex digits. short_hash: twelve hex digits of the SHA-256 of its tensors without the
            header, by which other tools know a LoRA.
        role: the half that took part, "content" or "style"; None for the whole adapter.
    """

    name: str
    strength: float
    sha256: str
    short_hash: str
    role: str | None = None


@dataclass(frozen=True, kw_only=True)
class PictureRecord:
    """What one picture was made from.

    Attributes:
        base: name of the base model, without folders. base_hash: SHA-256 of its weights.
        width, height: in pixels. dtype: of the weights, as "float32".
        block_prompts: attention stack -> what it was told in place of `prompt`.
        steered: pictures that decided it besides words, by their hashes: what it started from and how far it left that, its
            mask, what a ControlNet followed; empty for other pictures.
        recipe: the plan of a composition with the hashes of its files, as plain values; empty for other pictures.
        drawn: the shape of the forward that a batch drew it in, which decides no more than its last bits: rows, its own row,
            who shares adapters, threads, kernels; empty for other pictures. It is no part of `content_hash`.
        version: of the studio.
    """

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    guidance_scale: float
    scheduler: str
    width: int
    height: int
    base: str
    base_hash: str
    family: str
    dtype: str
    adapters: tuple[AdapterUse, ...] = ()
    block_prompts: Mapping[str, str] = field(default_factory=dict)
    steered: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    drawn: Mapping[str, Any] = field(default_factory=dict)
    version: str = __version__

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a JSON file. What most pictures do not have is left out where there is none."""
        values = asdict(self) | {"adapters": [_without_none(asdict(adapter)) for adapter in self.adapters]}
        return {key: value for key, value in values.items() if value or key not in _RARE}

    @classmethod
    def from_json(cls, values: Any) -> PictureRecord:
        """The record that `to_json` was called on; `ImageError` for anything else. Unknown keys are passed over."""
        try:
            adapters = tuple(AdapterUse(**_known(AdapterUse, adapter)) for adapter in values.get("adapters", ()))
            return cls(**_known(cls, values) | {"adapters": adapters})
        except (TypeError, AttributeError) as error:
            raise ImageError("The studio's record in the picture is not complete.") from error

    def content_hash(self) -> str:
        """SHA-256 of what decides the pixels, 64 hex digits: the same request has the same hash."""
        values = self.to_json()
        del values["version"]
        values.pop("drawn", None)
        return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    @classmethod
    def of(cls, base: BaseModel, request: ResolvedRequest, index: int, adapters: Sequence[AdapterUse] = ()) -> PictureRecord:
        """The record of picture number `index` of `request`."""
        return cls(
            prompt=request.prompts[index],
            negative_prompt=request.negative_prompt,
            seed=request.seeds[index],
            steps=request.steps,
            guidance_scale=request.guidance_scale,
            scheduler=request.scheduler,
            width=request.width,
            height=request.height,
            base=base_name(base.source),
            base_hash=base.content_hash,
            family=base.family.name,
            dtype=str(base.dtype).removeprefix("torch."),
            adapters=tuple(adapters),
            block_prompts={stack: prompts[index] for stack, prompts in request.block_prompts.items()},
        )


_RARE = ("block_prompts", "steered", "recipe", "drawn")


def lora_short_hash(path: Path) -> str:
    """The twelve hex digits by which A1111 and Civitai know a LoRA: of the SHA-256 of a safetensors file past its header."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:12]


def base_name(source: str) -> str:
    """A base model's name for others to read: a hub id as it is, a path without its folders and ending."""
    if Path(source).exists():
        path = Path(source)
        return path.stem if path.suffix == ".safetensors" else path.resolve().name
    return source


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _known(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in cls.__dataclass_fields__ if name in values}
