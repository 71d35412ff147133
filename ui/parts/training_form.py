"""From what a person says to the settings of a training: what to learn chooses the method, one slider the time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from studio.pipelines.errors import ConfigError
from studio.training.config.loading import parse_text
from studio.training.config.schema import SECTIONS

GOALS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "thing": {"adapter": {"method": "dreambooth-lora"}},
    "style": {"adapter": {"method": "sara"}},
    "split": {"adapter": {"method": "b-lora"}},
    "many": {"adapter": {"method": "dreambooth-lora"}, "concept": {"caption_words": "as-written"}, "loss": {"prior": "none"}},
}
"""What to learn, and the settings that follow."""

METHODS = ("dreambooth-lora", "diffusekrona", "sara", "b-lora")
EFFORTS: Mapping[int, float] = {1: 0.25, 2: 0.5, 3: 1.0, 4: 1.5, 5: 2.5}
"""The slider's places, as factors on the default number of steps."""

TOKENS = ("ohwx", "zwx", "qvk", "wzr", "xjy", "bxq", "pkzv", "fyqw")
"""Rare words that mean nothing to a base model."""

Settings = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class TrainingWishes:
    """What the form says. steps, rank, learning_rate: None for the default. method: "" for the goal's. more: lines "a.b = c"."""

    class_noun: str = ""
    token: str = ""
    goal: str = "thing"
    effort: int = 3
    base: str = "embedded"
    method: str = ""
    steps: int | None = None
    rank: int | None = None
    learning_rate: float | None = None
    more: str = ""


def settings_of(wishes: TrainingWishes) -> Settings:
    """Tables of training settings, without the photos. Raises ConfigError for a line that is none."""
    if wishes.goal not in GOALS:
        raise ConfigError(f"There is no goal {wishes.goal!r}; there are {', '.join(GOALS)}.")
    tables: Settings = {section: dict(values) for section, values in GOALS[wishes.goal].items()}
    concept = tables.setdefault("concept", {})
    if wishes.class_noun.strip():
        concept["class_noun"] = wishes.class_noun.strip()
    if wishes.token.strip():
        concept["token"] = wishes.token.strip()
    if wishes.base != "embedded":
        tables["model"] = {"base": wishes.base}
    if wishes.method:
        tables.setdefault("adapter", {})["method"] = wishes.method
    if wishes.steps:
        tables["schedule"] = {"steps": int(wishes.steps)}
    if wishes.rank:
        tables.setdefault("adapter", {})["rank"] = int(wishes.rank)
    if wishes.learning_rate:
        tables["optimizer"] = {"learning_rate": float(wishes.learning_rate)}
    for section, key, value in extra_settings(wishes.more):
        tables.setdefault(section, {})[key] = value
    return tables


def with_effort(settings: Settings, effort: int, default_steps: int) -> Settings:
    """The slider's number of steps, unless a number was given."""
    if settings.get("schedule", {}).get("steps") or EFFORTS.get(effort, 1.0) == 1.0:
        return settings
    steps = max(1, round(default_steps * EFFORTS[effort]))
    return {**settings, "schedule": {**settings.get("schedule", {}), "steps": steps}}


def extra_settings(text: str) -> list[tuple[str, str, Any]]:
    """Lines "section.key = value". Raises ConfigError for another one."""
    found = []
    for line in text.splitlines():
        if not line.strip() or line.strip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or section not in SECTIONS:
            raise ConfigError(f'The line "{line.strip()[:60]}" is no setting: write section.key = value, as in data.flip = true.')
        if (section, key) in {("run", "output_dir"), ("concept", "images"), ("data", "cache_dir")}:
            raise ConfigError(f"{section}.{key} is chosen by the page; leave it out.")
        plain = value.strip().strip('"')
        found.append((section, key, parse_text(section, key, plain) if key in SECTIONS[section].model_fields else plain))
    return found


def proposed_token(taken: Collection[str]) -> str:
    """A rare word that no trigger of the library has."""
    used = {word for trigger in taken for word in trigger.split()}
    return next((token for token in TOKENS if token not in used), TOKENS[0])
