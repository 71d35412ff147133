"""From a batch file to its requests, one a picture or training, in the file's order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studio.batch.axes import MAX_REQUESTS, Axis, places
from studio.batch.fields import AdapterRef, AnyRequest, ComposeRequest, GenerateRequest, canonical_keys, request_of, set_path
from studio.batch.prompts import WildcardSettings, substituted, variants, without_tags
from studio.batch.reading import BatchFile, Entry
from studio.pipelines.errors import ConfigError

_LABEL_LENGTH = 40


@dataclass(frozen=True)
class Expanded:
    """One picture, or one training.

    Attributes:
        index: its place in the expansion. request: with a seed of its own, substitutions and wildcards done.
        axes: where it stands on each axis, for labels and reports. where: its place in the file.
        plan_dir: of the plan file it came from.
    """

    index: int
    request: AnyRequest
    axes: Mapping[str, str]
    where: str
    plan_dir: Path | None = None

    @property
    def seed(self) -> int | None:
        """Of the picture; None for a training."""
        if isinstance(self.request, GenerateRequest):
            assert self.request.seed != "random"
            return self.request.seed
        return int(self.request.values.get("seed", 0)) if isinstance(self.request, ComposeRequest) else None


def expand(batch: BatchFile, most: int = MAX_REQUESTS) -> list[Expanded]:
    """Every request of the file: entries in order, axes' last one fastest, wildcards, then seeds in a row.

    Raises:
        ConfigError: something is wrong with one; says where. Or there are more than `most`.
    """
    found: list[Expanded] = []
    for entry in batch.entries:
        for request, axes in _of_entry(entry, batch.wildcards, most):
            found.append(Expanded(len(found), request, axes, entry.where, entry.plan_dir))
            if len(found) > most:
                raise ConfigError(f"{batch.name}: more than {most:,} requests; split the file.")
    if not found:
        raise ConfigError(f"{batch.name}: exclude leaves no request.")
    return [replace(each, request=_seeded(each)) for each in found]


def axis_keys(batch: BatchFile) -> list[str]:
    """The keys that vary, the slowest first: those of the axes, then seeds in a row and wildcards where there are some."""
    keys = dict.fromkeys(key for entry in batch.entries for axis in entry.axes for key in axis.keys)
    return [_plain(key) for key in keys]


def _of_entry(entry: Entry, wildcards: WildcardSettings, most: int) -> Iterator[tuple[AnyRequest, dict[str, str]]]:
    exclude = [{_plain(str(key)): value for key, value in table.items()} for table in entry.exclude]
    axes = [Axis(tuple(_plain(key) for key in axis.keys), axis.points) for axis in entry.axes]
    own = [table for table in exclude if all(any(key in axis.keys for axis in axes) for key in table)]
    if len(own) < len(exclude):
        missing = next(
            key for table in exclude if table not in own for key in table if not any(key in axis.keys for axis in axes)
        )
        raise ConfigError(f"{entry.where}: exclude names {missing!r}, which is on no axis.")
    for place in places(axes, own, entry.where, most):
        values = dict(entry.values)
        for key, value in place.items():
            for name, part in (
                {key: value} if values.get("method") or key.startswith("replace.") else canonical_pair(key, value)
            ).items():
                set_path(values, name, part)
        labels = {key: label_of(value) for key, value in place.items()}
        request = request_of(values, entry.where)
        if isinstance(request, GenerateRequest):
            yield from _pictures(request, labels, wildcards, entry.where, most)
        elif isinstance(request, ComposeRequest):
            yield from _compositions(request, labels, entry.where)
        else:
            yield request, labels


def canonical_pair(key: str, value: Any) -> dict[str, Any]:
    """One key and value as fields; a dotted key stays dotted."""
    head, dot, rest = key.partition(".")
    if dot:
        return {f"{head}.{rest}": value}
    return canonical_keys({key: value})


def label_of(value: Any) -> str:
    """A value as a few words for the edge of a sheet."""
    if isinstance(value, Mapping):
        value = value.get("name", value.get("file", json.dumps(value, ensure_ascii=False, sort_keys=True)))
    if isinstance(value, list | tuple):
        value = " + ".join(label_of(each) for each in value) if value else "none"
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    if text.endswith(".safetensors") or ".safetensors:" in text:
        text = text.replace("\\", "/").rpartition("/")[2].replace(".safetensors", "")
    return text if len(text) <= _LABEL_LENGTH else text[: _LABEL_LENGTH - 1] + "…"


def _plain(key: str) -> str:
    """A key as fields call it."""
    head, dot, _ = key.partition(".")
    if dot or head in ("size", "replace"):
        return key
    return next(iter(canonical_keys({key: []})), key)


def _pictures(
    request: GenerateRequest, labels: dict[str, str], wildcards: WildcardSettings, where: str, most: int
) -> Iterator[tuple[AnyRequest, dict[str, str]]]:
    prompt = substituted(request.prompt, request.replace, where)
    negatives = variants(request.negative_prompt, wildcards, most, where) if request.negative_prompt else [""]
    prompts = variants(prompt, wildcards, most, where)
    for text in prompts:
        for negative in negatives:
            plain, tags = without_tags(text)
            adapters = [each if request.strength is None else each.model_copy(update={"strength": request.strength})
                        for each in request.adapters]  # fmt: skip
            adapters += [AdapterRef(file=f"{name}.safetensors", strength=strength) for name, strength in tags]
            more = {"prompt": label_of(plain)} if len(prompts) > 1 else {}
            for number in range(request.num_images):
                seed = request.seed if request.seed == "random" else request.seed + number
                counted = {"seed": str(seed)} if request.num_images > 1 and seed != "random" else {}
                change: dict[str, Any] = {
                    "prompt": plain,
                    "negative_prompt": negative,
                    "adapters": tuple(adapters),
                    "seed": seed,
                    "num_images": 1,
                    "replace": {},
                    "strength": None,
                }
                yield request.model_copy(update=change), {**labels, **more, **counted}


def _compositions(request: ComposeRequest, labels: dict[str, str], where: str) -> Iterator[tuple[AnyRequest, dict[str, str]]]:
    first, count = request.values.get("seed", 0), request.values.get("num_images", 1)
    if not isinstance(first, int) or not isinstance(count, int) or not 1 <= count <= MAX_REQUESTS:
        raise ConfigError(f"{where}: seed and num_images of a plan are whole numbers.")
    for number in range(count):
        counted = {"seed": str(first + number)} if count > 1 else {}
        values = {**request.values, "seed": first + number, "num_images": 1}
        yield request.model_copy(update={"values": values}), {**labels, **counted}


def _seeded(each: Expanded) -> AnyRequest:
    """A seed for a request that wants a random one: a number made of its place and words, the same at every run."""
    request = each.request
    if not isinstance(request, GenerateRequest) or request.seed != "random":
        return request
    digest = hashlib.sha256(f"{each.index} {request.model_dump_json()}".encode()).digest()
    return request.model_copy(update={"seed": int.from_bytes(digest[:4], "big")})
