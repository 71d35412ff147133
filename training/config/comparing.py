"""When two configurations mean the same run: a hash, and the differences by name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from studio.training.config.schema import TrainConfig

MAY_CHANGE_ON_RESUME = frozenset(
    {
        "concept.caption_words",  # the captions themselves are compared by `ConceptDataset.signature`
        "concept.images",  # the folder may have moved; the photos in it are compared by `ConceptDataset.signature`
        "data.cache",
        "data.cache_dir",
        "data.max_megapixels",
        "run.checkpoint_every",
        "run.device",
        "run.keep_checkpoints",
        "run.name",
        "run.output_dir",
        "run.sample_every",
    }
)
"""Settings that change no weight of a run: they may differ when it is resumed."""


@dataclass(frozen=True)
class ConfigChange:
    """One setting that differs."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_plain(self.old)} -> {_plain(self.new)}"


def config_difference(old: TrainConfig, new: TrainConfig) -> tuple[ConfigChange, ...]:
    """The settings that differ and that would make `new` another run than `old`, in the schema's order."""
    before, after = flat_settings(old), flat_settings(new)
    return tuple(
        ConfigChange(key, before[key], after[key])
        for key in before
        if before[key] != after[key] and key not in MAY_CHANGE_ON_RESUME
    )


def config_hash(config: TrainConfig) -> str:
    """SHA-256 (64 hex digits) over the settings that make the run what it is: equal iff `config_difference` is empty."""
    kept = {key: value for key, value in flat_settings(config).items() if key not in MAY_CHANGE_ON_RESUME}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def flat_settings(config: TrainConfig) -> dict[str, Any]:
    """All settings by `section.key`, as JSON values."""
    tables = config.model_dump(mode="json")
    return {f"{section}.{key}": value for section, table in tables.items() for key, value in table.items()}


def _plain(value: Any) -> str:
    return "the default" if value is None else json.dumps(value, ensure_ascii=False)
