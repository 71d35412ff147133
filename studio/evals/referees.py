"""`studio eval referees`: how often guide and judge are right on held-out renders after the autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studio.assets import world
from studio.assets.world import Scene
from studio.evals.detection import average_precision, iou
from studio.evals.records import Record, RecordLog, open_log
from studio.evals.statistics import Interval, bootstrap_interval, share_interval
from studio.evals.tables import Cell, Table, write_table
from studio.pipelines.scoring.checklist import PRESENT_FROM
from studio.pipelines.scoring.embedded import EmbeddedScorer
from studio.pipelines.scoring.scorer import Detection, Reading
from studio.training.referees.renders import RoundTrip, view_of

HELD_OUT_SEED = 70_001
INDIVIDUALS_FROM = 500_000
MIN_WIDTH = 24 / 96
NUM_INDIVIDUALS, NUM_REFERENCES, NUM_QUERIES = 50, 5, 2
BARS = {
    "class": 0.97,
    "colour": 0.95,
    "pattern": 0.90,
    "style": 0.97,
    "mAP@0.5": 0.90,
    "identity among 50": 0.85,
}
"""What a referee has to reach to be used at all."""


def evaluate_referees(
    scorers: Sequence[EmbeddedScorer],
    round_trip: RoundTrip,
    folder: Path,
    *,
    num_scenes: int = 1000,
    num_queries: int = NUM_QUERIES,
) -> Table:
    """Measure scorers on the same held-out renders; write raw records and the table into `folder`."""
    scenes = [world.random_scene(np.random.default_rng([HELD_OUT_SEED, index])) for index in range(num_scenes)]
    pictures = draw(scenes, round_trip)
    logs: dict[str, RecordLog] = {}
    for scorer in scorers:
        header = {
            "what": "referee",
            "name": scorer.name,
            "sha256": scorer.content_hash,
            "scenes": num_scenes,
            "queries": num_queries,
        }
        log = logs[scorer.name] = open_log(folder / f"{scorer.name}.jsonl", header)
        if len(log) == 0:
            log.append(reading_records(scenes, scorer.read(pictures)))
            _append_joint(log, scorer, scenes, pictures)
    for class_name in world.CLASSES:
        missing = [scorer for scorer in scorers if f"identity-{class_name}-0-0" not in logs[scorer.name]]
        if missing:
            gallery = draw_individuals(class_name, round_trip, num_queries)
            for scorer in missing:
                logs[scorer.name].append(identity_records(scorer, gallery))
    columns = [summarize(logs[scorer.name].all()) for scorer in scorers]
    rows = tuple((name, *(column[name] for column in columns), BARS.get(name)) for name in columns[0])
    table = Table(
        f"Referees on {num_scenes} held-out renders after the autoencoder",
        ("what", *(scorer.name for scorer in scorers), "bar"),
        rows,
        (
            "Objects at least 24 of 96 pixels wide. An object counts as seen when a detection overlaps it by half (score at",
            f"least {PRESENT_FROM}); an object that was not seen has the wrong class, colour and pattern. Identity: nearest of",
            f"{NUM_INDIVIDUALS} individuals of one class by the mean of {NUM_REFERENCES} flat references; the query is in any",
            "style, one in three beside another object.",
        ),
    )
    write_table(table, folder, "referees")
    return table


def draw(scenes: Sequence[Scene], round_trip: RoundTrip) -> list[NDArray[np.uint8]]:
    """Render scenes and send them through the autoencoder; uint8 `[96, 96, 3]` each."""
    pictures: list[NDArray[np.uint8]] = []
    for start in range(0, len(scenes), 64):
        clean = np.stack([world.render(scene) for scene in scenes[start : start + 64]])
        decoded: Tensor = round_trip(torch.from_numpy(clean).permute(0, 3, 1, 2).float() / 255, None)
        pictures += list((decoded * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return pictures


def reading_records(scenes: Sequence[Scene], readings: Sequence[Reading]) -> list[Record]:
    """One record a picture: what is there, what was read, and which of it is right."""
    records: list[Record] = []
    for index, (scene, reading) in enumerate(zip(scenes, readings, strict=True)):
        objects = []
        for thing in scene.objects:
            if thing.box[2] - thing.box[0] < MIN_WIDTH:
                continue
            seen = _best_overlap(thing.box, reading.detections)
            plain = thing.colour if thing.look is None else None
            objects.append(
                {
                    "class": thing.class_name,
                    "class_right": seen is not None and seen.class_name == thing.class_name,
                    "colour_right": None if plain is None else seen is not None and seen.colour == plain,
                    "pattern_right": seen is not None and seen.pattern == thing.pattern,
                }
            )
        records.append(
            {
                "id": f"scene-{index:05d}",
                "kind": "scene",
                "objects": objects,
                "truth": [[thing.class_name, list(thing.box)] for thing in scene.objects],
                "found": [
                    [thing.class_name, round(thing.score, 4), [round(v, 4) for v in thing.box]] for thing in reading.detections
                ],
                "style": scene.style,
                "style_right": reading.style == scene.style,
                "background_right": reading.background == scene.background,
            }
        )
    return records


@dataclass(frozen=True)
class Gallery:
    """Pictures of 50 individuals of a class: five references and some queries each, individual after individual."""

    class_name: str
    references: list[NDArray[np.uint8]]
    queries: list[NDArray[np.uint8]]
    query_styles: list[str]


def draw_individuals(class_name: str, round_trip: RoundTrip, num_queries: int) -> Gallery:
    """Render the gallery of a class; references are flat and alone, queries in any style and place."""
    individuals = [world.random_individual(class_name, INDIVIDUALS_FROM + number) for number in range(NUM_INDIVIDUALS)]
    rng = np.random.default_rng([HELD_OUT_SEED, 1, world.CLASSES.index(class_name)])
    references = [
        world.place(individual, background=str(rng.choice(world.BACKGROUNDS)), style="flat", rng=rng)
        for individual in individuals
        for _ in range(NUM_REFERENCES)
    ]
    queries = [view_of(individual, rng) for individual in individuals for _ in range(num_queries)]
    return Gallery(class_name, draw(references, round_trip), draw(queries, round_trip), [scene.style for scene in queries])


def identity_records(scorer: EmbeddedScorer, gallery: Gallery) -> list[Record]:
    """Which of the gallery's individuals is nearest to each query picture."""
    name, num_queries = gallery.class_name, len(gallery.queries) // NUM_INDIVIDUALS
    known = torch.stack([group[0] for group in scorer.embed_things(gallery.references, name)])
    centres = torch.nn.functional.normalize(known.unflatten(0, (NUM_INDIVIDUALS, NUM_REFERENCES)).mean(dim=1), dim=1)
    records: list[Record] = []
    for index, group in enumerate(scorer.embed_things(gallery.queries, name)):
        number, nearest = index // num_queries, int((group @ centres.T).amax(dim=0).argmax())
        records.append(
            {
                "id": f"identity-{name}-{number}-{index % num_queries}",
                "kind": "identity",
                "class": name,
                "individual": number,
                "nearest": nearest,
                "right": nearest == number,
                "style": gallery.query_styles[index],
            }
        )
    return records


def summarize(records: Sequence[Record]) -> dict[str, Cell]:
    """The table's column: every figure of one referee from its raw records."""
    scenes = [record for record in records if record["kind"] == "scene"]
    things = [thing for record in scenes for thing in record["objects"]]
    identity = [record for record in records if record["kind"] == "identity"]
    found = [[_detection(*thing) for thing in record["found"]] for record in scenes]
    precision = average_precision([[(name, tuple(box)) for name, box in record["truth"]] for record in scenes], found)
    column: dict[str, Cell] = {
        key: share_interval([bool(thing[f"{key}_right"]) for thing in things if thing[f"{key}_right"] is not None])
        for key in ("class", "colour", "pattern")
    }
    column["style"] = share_interval([record["style_right"] for record in scenes])
    column["background"] = share_interval([record["background_right"] for record in scenes])
    column["mAP@0.5"] = float(np.mean(list(precision.values())))
    column["identity among 50"] = _identity_interval(identity)
    for style in world.STYLES:
        column[f"identity, {style}"] = _identity_interval([record for record in identity if record["style"] == style])
    joint = [record for record in records if record["kind"] == "joint"]
    column["caption among 50"] = share_interval([record["right"] for record in joint])
    return column


def _identity_interval(records: Sequence[Record]) -> Interval:
    groups = [(record["class"], record["individual"]) for record in records]
    return bootstrap_interval([float(record["right"]) for record in records], groups)


def _append_joint(log: RecordLog, scorer: EmbeddedScorer, scenes: Sequence[Scene], pictures: Sequence[NDArray[np.uint8]]) -> None:
    """Is a picture's own full caption the nearest of its group of 50?"""
    for start in range(0, len(scenes) - 49, 50):
        captions = [world.full_caption(scene) for scene in scenes[start : start + 50]]
        cosine = scorer.embed_images(pictures[start : start + 50]) @ scorer.embed_texts(captions).T
        nearest = cosine.argmax(dim=1).tolist()
        log.append({"id": f"joint-{start + k:05d}", "kind": "joint", "right": other == k} for k, other in enumerate(nearest))


def _best_overlap(box: tuple[float, float, float, float], detections: Sequence[Detection]) -> Detection | None:
    present = [thing for thing in detections if thing.score >= PRESENT_FROM]
    best = max(present, key=lambda thing: iou(thing.box, box), default=None)
    return best if best is not None and iou(best.box, box) >= 0.5 else None


def _detection(name: str, score: float, box: list[float]) -> Detection:
    x0, y0, x1, y1 = box
    return Detection(
        class_name=name, score=score, box=(x0, y0, x1, y1), colour="", colour_score=0.0, pattern="", pattern_score=0.0
    )
