"""A training run as a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studio.jobs.folder import HandedIn, JobFolder
from studio.jobs.specs import TrainSpec
from studio.jobs.work.reporting import TrainingProgress
from studio.library.library import Library
from studio.storage.home import Home


def run_training(folder: JobFolder, handed_in: HandedIn, home: Home, device: str) -> dict[str, Any]:
    """Train, or go on with what lies in the output folder, and put the adapter into the library.

    Returns:
        What the result says: the adapter's file, its id in the library, the facts for people.

    Raises:
        Interrupted: a signal asked to stop; everything is written down. StudioError: it cannot be done; says why.
    """
    from studio.training.config import validate
    from studio.training.trainer import train

    spec = handed_in.spec
    assert isinstance(spec, TrainSpec)
    run = {**spec.settings.get("run", {}), "output_dir": str(handed_in.output_dir), "device": device}
    config = validate({**spec.settings, "run": run})
    result = train(config, progress=TrainingProgress(folder), redact=spec.redact)
    chosen = next((each for each in result.scores if each.step == result.chosen_step), None)
    facts: dict[str, Any] = {
        "trigger": result.trigger,
        "steps": result.steps,
        "chosen_step": result.chosen_step,
        "reason": result.reason,
        "warnings": list(result.warnings),
        "scores": None if chosen is None else chosen.as_json(),
        "train_seconds": result.train_seconds,
        "report": str(result.report_path),
    }
    score = None if chosen is None else chosen.identity
    item = _keep(home, handed_in, result.adapter_path, score, facts) if spec.keep else None
    if item is not None:
        folder.add_event("message", text="the adapter is in the library", item=item)
    return {"adapter": str(result.adapter_path), "item": item, "facts": facts}


def _keep(home: Home, handed_in: HandedIn, adapter: Path, score: float | None, facts: dict[str, Any]) -> str | None:
    library = Library(home)
    try:
        names = ("chosen_step", "reason", "report", "scores")
        known = {"job": handed_in.id, **{name: facts[name] for name in names if facts[name] is not None}}
        done = library.add_adapter(adapter, owner=handed_in.submit.owner, score=score, facts=known)
    finally:
        library.close()
    return None if done.item is None else done.item.id
