"""What a batch's folder says of every request, read from its own lines; no task is resolved and no model loaded for it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Told = Literal["waiting", "done", "failed", "refused"]

JOBS, SCORES = "jobs.jsonl", "scores.csv"


@dataclass(frozen=True)
class RequestResult:
    """One request of the expansion, and what came of it so far.

    Attributes:
        where: its place in the file. axes: where it stands on each. title: its prompt. group: with which it is drawn.
        state: "refused" is for one that cannot be done at all. error: why it was not done. file: in the batch's folder.
        score: how far the picture shows its prompt, where it was scored.
    """

    index: int
    where: str
    axes: Mapping[str, str]
    kind: str
    title: str
    seed: int | None
    group: int | None
    state: Told = "waiting"
    error: str = ""
    file: str | None = None
    seconds: float | None = None
    score: float | None = None


def read_results(folder: Path) -> list[RequestResult]:
    """Every request in the file's order; none before the batch was begun. Equal requests have one result."""
    lines = _all_lines(folder)
    known = {str(line["id"]): line for line in lines if "id" in line}
    refused = {int(line["index"]): line for line in lines if line.get("state") == "refused"}
    scores = _scores(folder / SCORES)
    found = []
    for line in read_lines(folder / JOBS):
        index = int(line["index"])
        outcome = known.get(str(line["id"]), {}) if "id" in line else refused.get(index, {})
        state = outcome.get("state", "waiting")
        found.append(
            RequestResult(
                index=index,
                where=str(line.get("where", "")),
                axes={str(key): str(value) for key, value in dict(line.get("axes", {})).items()},
                kind=str(line.get("kind", "")),
                title=str(line.get("title", "")),
                seed=line.get("seed"),
                group=line.get("group"),
                state=state if state in ("done", "failed", "refused") else "waiting",
                error=str(outcome.get("error", "")),
                file=outcome.get("file"),
                seconds=outcome.get("seconds"),
                score=scores.get(index),
            )
        )
    return found


def outcomes_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Task id -> the last thing that was written of it, by any shard."""
    return {str(line["id"]): line for line in _all_lines(folder) if "id" in line}


def read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file; empty if there is no file, or no table in it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The tables in a JSONL file; lines that are none, as a killed process leaves them, are passed over."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            found.append(values)
    return found


def _all_lines(folder: Path) -> list[dict[str, Any]]:
    """The results of all shards, in the order in which they were written."""
    lines = [line for path in sorted(folder.glob("results*.jsonl")) for line in read_lines(path)]
    return sorted(lines, key=lambda line: str(line.get("time", "")))


def _scores(path: Path) -> dict[int, float]:
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        return {int(row["index"]): float(row["prompt_fidelity"]) for row in csv.DictReader(stream) if row["prompt_fidelity"]}
