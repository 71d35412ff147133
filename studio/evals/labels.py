"""The judge's error on sampled pictures: a person's labels against its verdicts.

A label file is JSON: the base's hash, and for every picture what a person sees in it,

    {"base": "…", "labels": {"one-000": {"objects": ["red striped cat"], "background": "snow", "style": "flat"}, …}}

An object is written as its words; "?" stands for a word that cannot be told, as in "red ? cat" or "blue plain ?". A blob of
no class is "?" alone. Objects that are named in the prompt and not in the picture are left out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studio.assets import world
from studio.evals.base_prompts import BasePrompt, load_base_prompts, statements
from studio.evals.records import Record
from studio.evals.statistics import share_interval, wilson_interval
from studio.evals.tables import Cell, Table
from studio.pipelines.errors import UserError
from studio.pipelines.files import atomic_write_json
from studio.pipelines.scoring import Detection, Reading

CANNOT_TELL = "?"


def choose_for_labels(prompts: Sequence[BasePrompt], num: int) -> list[BasePrompt]:
    """`num` pictures to label: three of five show one object, the others two."""
    ones = [prompt for prompt in prompts if prompt.group == "one"][: num * 3 // 5]
    return ones + [prompt for prompt in prompts if prompt.group == "two"][: num - len(ones)]


def write_label_template(prompts: Sequence[BasePrompt], base_hash: str, path: Path) -> None:
    """A label file that says what the prompts say; a person corrects what the pictures show otherwise."""
    labels = {
        prompt.id: {
            "objects": [
                " ".join((thing.colour or CANNOT_TELL, thing.pattern or CANNOT_TELL, thing.class_name))
                for thing in prompt.facts.objects
            ],
            "background": prompt.facts.background,
            "style": prompt.facts.style,
        }
        for prompt in prompts
    }
    atomic_write_json(path, {"base": base_hash, "labels": labels}, indent=1)


def label_table(path: Path, header: Record, records: Sequence[Record]) -> Table:
    """How often the judge's verdict on a statement is not the label's, by kind of statement.

    Relations are left out: labels have no places. Raises UserError for a label file of another base.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    if data["base"] != header["base"]:
        raise UserError(f"The labels in {path} are of another base ({data['base'][:12]}…) than the records.")
    prompts = {prompt.id: prompt for prompt in load_base_prompts()}
    verdicts = {record["id"]: record["items"] for record in records}
    pairs: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for picture, label in data["labels"].items():
        if picture not in verdicts:
            raise UserError(f"There is no judged picture {picture!r}; run the evaluation on as many prompts as were labelled.")
        seen = dict(statements(prompts[picture].facts, reading_of_label(label)))
        for name, judged in verdicts[picture].items():
            if name != "relation" and not _untold(name, prompts[picture], label):
                pairs[name.split()[-1]].append((judged, seen[name]))
    rows: list[tuple[Cell, ...]] = []
    for kind, verdict in pairs.items():
        accepted_wrongly = sum(judged and not true for judged, true in verdict)
        refused_wrongly = sum(true and not judged for judged, true in verdict)
        rows.append(
            (
                kind,
                share_interval([judged != true for judged, true in verdict]),
                wilson_interval(accepted_wrongly, sum(not true for _, true in verdict)),
                wilson_interval(refused_wrongly, sum(true for _, true in verdict)),
                len(verdict),
            )
        )
    return Table(
        f"The judge against a person's labels of {len(data['labels'])} sampled pictures",
        ("statement", "verdict differs", "accepts what is wrong", "refuses what is right", "statements"),
        tuple(rows),
    )


def reading_of_label(label: Mapping[str, Any]) -> Reading:
    """A label as if a perfect judge had read the picture. Objects stand nowhere in particular."""
    detections = []
    for text in label["objects"]:
        words = text.split()
        for word in words:
            if word != CANNOT_TELL and word not in (*world.CLASSES, *world.COLOURS, *world.PATTERNS):
                raise UserError(
                    f"The label {text!r} has the word {word!r}, which is no class, colour or pattern; write ? for unclear."
                )
        named = [next((word for word in words if word in known), CANNOT_TELL) for known in _KNOWN]
        detections.append(
            Detection(
                class_name=named[0],
                score=1.0,
                box=(0.0, 0.0, 1.0, 1.0),
                colour=named[1],
                colour_score=1.0,
                pattern=named[2],
                pattern_score=1.0,
            )
        )
    return Reading(
        detections=tuple(detections),
        background=label.get("background") or CANNOT_TELL,
        background_score=1.0,
        style=label.get("style") or CANNOT_TELL,
        style_score=1.0,
    )


_KNOWN = (world.CLASSES, world.COLOURS, world.PATTERNS)


def _untold(statement: str, prompt: BasePrompt, label: Mapping[str, Any]) -> bool:
    """Whether the person could not tell what the statement is about: the label has no word for it."""
    kind = statement.rsplit(maxsplit=1)[-1]
    if kind in ("background", "style"):
        return not label.get(kind)
    if kind == "class":
        return False
    wanted = prompt.facts.objects[int(statement.split()[1]) - 1].class_name
    known = world.COLOURS if kind == "colour" else world.PATTERNS
    same = [text.split() for text in label["objects"] if wanted in text.split()]
    return any(not set(words) & set(known) for words in same)
