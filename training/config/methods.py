"""What a training method sets by itself when nobody else does, and which sections are a method's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class MethodPreset:
    """A method's own starting point, on every family; what depends on the family is in `ModelFamily.method_train`.

    Attributes:
        tables: section -> key -> value; a file, a flag and --set are stronger.
        section: the section of the configuration that belongs to this method alone.
        num_images: how many pictures the method is made for; more are allowed, and are remarked on.
        many_images: the remark, after "N pictures: ".
    """

    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    section: str | None = None
    num_images: int | None = None
    many_images: str = ""


_NEUTRAL = "a {token}"

B_LORA = MethodPreset(
    tables={
        # The paper's neutral prompt "A [v]". A class noun in the captions made style transfer worse, so nothing needs one:
        # what stands here only names the pictures that the base model draws without the token.
        "concept": {
            "class_noun": "picture",
            "caption_templates": (_NEUTRAL,),
            "bare_template": _NEUTRAL,
        },
        "schedule": {"warmup_steps": 0},
        "data": {"buckets": False},  # a square from the middle
        "run": {"sample_prompts": (_NEUTRAL, f"{_NEUTRAL} in the snow", f"{_NEUTRAL} on the beach", f"{_NEUTRAL} at night")},
    },
    section="b_lora",
    num_images=1,
    many_images="B-LoRA is made for one; it will learn what they have in common, and less of each",
)

SARA = MethodPreset(tables={"schedule": {"name": "cosine"}}, section="sara")

DIFFUSEKRONA = MethodPreset(section="krona")

PRESETS: Mapping[str, MethodPreset] = {"b-lora": B_LORA, "diffusekrona": DIFFUSEKRONA, "sara": SARA}


def preset_of(method: str) -> MethodPreset:
    """The preset of the method called `method`; an empty one for a method that has none."""
    return PRESETS.get(method, MethodPreset())


def with_presets(tables: Any) -> Any:
    """`tables` with the preset of its `adapter.method` under them; anything that is no table is left as it is."""
    if not isinstance(tables, Mapping):
        return tables
    adapter = tables.get("adapter")
    method = adapter.get("method") if isinstance(adapter, Mapping) else getattr(adapter, "method", None)
    merged = dict(tables)
    for section, values in preset_of(method).tables.items() if isinstance(method, str) else ():
        given = merged.get(section, {})
        if isinstance(given, Mapping):
            merged[section] = {**values, **given}
    return merged


def foreign_sections(method: str) -> frozenset[str]:
    """The sections that belong to other methods than the one called `method`."""
    return frozenset(preset.section for owner, preset in PRESETS.items() if preset.section is not None and owner != method)


def check_sections(method: str, given: Collection[str]) -> None:
    """Raises ValueError with a sentence when one of the `given` sections belongs to another method."""
    for owner, preset in PRESETS.items():
        if preset.section is not None and preset.section in given and owner != method:
            raise ValueError(
                f"[{preset.section}] belongs to the method {owner}, and this run's is {method}: leave the section out, or train "
                f"with {owner}"
            )
