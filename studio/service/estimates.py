"""What a training will be like, before it is handed in: its settings with every default, and about how long it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.jobs.specs import TrainSpec
from studio.jobs.store import JobFilter, JobStore
from studio.pipelines.errors import StudioError
from studio.pipelines.families import EMBEDDED, ModelFamily, family_named
from studio.training.config import TrainConfig, validate
from studio.training.config.defaults import resolve_defaults
from studio.training.selection import PHOTOS_TO_HOLD_ONE_OUT

RECENT_RUNS = 20


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate:
    """The settings that count, and the time.

    Attributes:
        config: with every default filled in. steps: of the optimizer.
        seconds: of the whole job, as the last finished one with this method and base went; None where there was none.
    """

    config: TrainConfig
    steps: int
    seconds: float | None


def estimate_training(store: JobStore, settings: dict[str, dict[str, Any]], num_photos: int) -> TrainingEstimate:
    """What training with `settings` on so many photos will be like.

    Raises:
        ConfigError: a setting is wrong; says all that are.
    """
    config = validate({**settings, "concept": {"images": ".", "class_noun": "thing", **settings.get("concept", {})}})
    hold_out = config.concept.hold_out == "auto" and num_photos >= PHOTOS_TO_HOLD_ONE_OUT
    resolved = resolve_defaults(config, family_of(config.model.base), max(1, num_photos - hold_out))
    steps = resolved.schedule.steps
    assert steps is not None
    rate = seconds_per_step(store, config.adapter.method, config.model.base)
    return TrainingEstimate(config=resolved, steps=steps, seconds=None if rate is None else rate * steps)


def family_of(base: str) -> ModelFamily:
    """The family of a base model; the embedded one's for what is not on this disk."""
    if base == "embedded":
        return EMBEDDED
    from studio.library.reading import read_base

    try:
        found = read_base(Path(base)).family
    except (StudioError, OSError, ValueError, KeyError):
        return EMBEDDED
    return EMBEDDED if found is None else family_named(found)


def seconds_per_step(store: JobStore, method: str, base: str) -> float | None:
    """How long a step took in the last finished training of this kind on this machine, samples and all."""
    for job, spec, steps in _finished(store):
        same = spec.settings.get("adapter", {}).get("method", "dreambooth-lora") == method
        if same and spec.settings.get("model", {}).get("base", "embedded") == base and steps:
            return job / steps
    return None


def _finished(store: JobStore) -> Iterable[tuple[float, TrainSpec, int]]:
    for job in store.list(JobFilter(states=("succeeded",), kinds=("train",)), limit=RECENT_RUNS):
        folder = store.folder(job.id)
        result = folder.read_result()
        spec = folder.read_job().spec
        if result is not None and isinstance(spec, TrainSpec) and job.started is not None and job.finished is not None:
            yield job.finished - job.started, spec, int(result.get("facts", {}).get("steps", 0))
