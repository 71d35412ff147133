"""Batch files that were pasted or sent: kept under the home, expanded to be looked at, and what they would cost."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.pipelines.errors import UserError
from studio.pipelines.files import atomic_write_text
from studio.service import GenerateSpec, JobFilter, Studio

SUFFIXES = (".txt", ".csv", ".jsonl", ".yaml", ".yml", ".json")
MAX_TEXT = 500_000
RECENT = 20


@dataclass(frozen=True)
class Looked:
    """What a file would do."""

    requests: Sequence[Any]
    axes: Sequence[str]


def kept_file(studio: Studio, text: str, form: str, sent: str | None) -> Path:
    """The file to run, under the home. Raises UserError when there is nothing in it, or far too much."""
    folder = studio.home.root / "batches"
    folder.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S") + f"-{time.time_ns() % 1000:03d}"
    if sent:
        source = Path(sent)
        if source.suffix.lower() not in SUFFIXES:
            raise UserError(f"{source.name} is no batch file; there are {', '.join(SUFFIXES)}.")
        target = folder / f"{stamp}-{source.stem[:40]}{source.suffix.lower()}"
        shutil.copyfile(source, target)
        return target
    if not text.strip():
        raise UserError("There is nothing in it yet: write a prompt on each line, or send a file.")
    if len(text) > MAX_TEXT or f".{form}" not in SUFFIXES:
        raise UserError(f"The text has {len(text)} letters; {MAX_TEXT} are the most. Send it as a file, or in parts.")
    target = folder / f"{stamp}.{form}"
    atomic_write_text(target, text)
    return target


def look_at(path: Path) -> Looked:
    """Expand a file. Raises UserError with what is wrong in it, and where."""
    from studio.batch.expansion import axis_keys, expand
    from studio.batch.reading import read_batch

    batch = read_batch(path)
    return Looked(expand(batch), axis_keys(batch))


def seconds_per_picture(studio: Studio) -> float | None:
    """How long a picture took in the last requests; None if there were none."""
    for job in studio.jobs(JobFilter(kinds=("generate",), states=("succeeded",)), limit=RECENT):
        spec = studio.request(job.id).spec
        if isinstance(spec, GenerateSpec) and job.started and job.finished:
            return (job.finished - job.started) / (spec.num_images * len(spec.prompts))
    return None
