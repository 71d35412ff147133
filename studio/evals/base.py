"""`studio eval base`: what the base model draws for fixed prompts, read by the judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import wrap

import numpy as np
from PIL import Image

from studio.assets import world
from studio.evals.base_prompts import GROUP_SIZES, BasePrompt, load_base_prompts, scene_of, statements
from studio.evals.base_tables import distance_table, fidelity_table
from studio.evals.labels import choose_for_labels, write_label_template
from studio.evals.records import Record, RecordLog, open_log
from studio.evals.referees import draw
from studio.evals.sheets import numbered_sheet
from studio.evals.tables import Table, write_table
from studio.pipelines.base_model import BaseModel
from studio.pipelines.generation import GenerationRequest, generate, resolve_request
from studio.pipelines.scoring import EmbeddedScorer, Picture
from studio.training.referees.renders import RoundTrip

NUM_RENDERS = 2_000
SHEET_PICTURES = 48
LABEL_SHEET = 40
RENDER_SEED = 60_001


def evaluate_base(
    base: BaseModel,
    judge: EmbeddedScorer,
    folder: Path,
    *,
    round_trip: RoundTrip | None = None,
    limit: int | None = None,
    steps: int = 30,
    batch_size: int = 20,
    num_renders: int = NUM_RENDERS,
    report: Callable[[str], None] = print,
) -> list[Table]:
    """Draw what is not drawn yet, judge it, and write records, tables and a contact sheet into `folder`.

    Args:
        round_trip: the base's autoencoder, for the row that shows what it alone costs; None leaves the row out.
        limit: prompts of each group at most, for a quick look.
        num_renders: renders of the one- and two-object prompts that distances are measured to.
    """
    prompts = select_prompts(limit)
    log, pictures_dir = open_run(base, judge, folder, steps)
    draw_missing(base, judge, prompts, log, pictures_dir, steps=steps, batch_size=batch_size, report=report)
    wanted = {prompt.id for prompt in prompts}
    records = [record for record in log.all() if record["id"] in wanted]
    note = f"base {base.content_hash[:12]}, judge {judge.content_hash[:12]}, {steps} steps, one picture a prompt"
    tables = [fidelity_table(records, note)]
    pictures = open_pictures(prompts, pictures_dir)
    plain = [prompt for prompt in prompts if prompt.group in ("one", "two")]
    tables.append(distances(judge, plain, pictures[: len(plain)], round_trip, num_renders, note))
    for table, name in zip(tables, ("fidelity", "distances"), strict=True):
        write_table(table, folder, name)
    write_sheet(records[:SHEET_PICTURES], pictures[:SHEET_PICTURES], folder / "sheet.png")
    return tables


def write_label_sheets(base: BaseModel, judge: EmbeddedScorer, folder: Path, *, num: int, steps: int = 30) -> list[Path]:
    """Contact sheets of `num` drawn pictures without the judge's words, and a label file to correct: the paths.

    A label file that is there already is somebody's work and is left alone.
    """
    log, pictures_dir = open_run(base, judge, folder, steps)
    prompts = [prompt for prompt in choose_for_labels(load_base_prompts(), num) if prompt.id in log]
    paths = []
    for start in range(0, len(prompts), LABEL_SHEET):
        part = prompts[start : start + LABEL_SHEET]
        lines = [[prompt.id, *_wrapped(prompt.prompt)] for prompt in part]
        path = folder / f"labels-{start // LABEL_SHEET + 1:02d}.png"
        numbered_sheet(open_pictures(part, pictures_dir), lines, columns=8, side=144).save(path)
        paths.append(path)
    template = folder / "labels.json"
    if not template.exists():
        write_label_template(prompts, base.content_hash, template)
    return [*paths, template]


def select_prompts(limit: int | None) -> list[BasePrompt]:
    """The fixed prompts, or the first `limit` of each group."""
    prompts = load_base_prompts()
    if limit is None:
        return prompts
    return [prompt for group in GROUP_SIZES for prompt in [item for item in prompts if item.group == group][:limit]]


def open_run(base: BaseModel, judge: EmbeddedScorer, folder: Path, steps: int) -> tuple[RecordLog, Path]:
    """The run's records, and the folder of its pictures: another base or setting has another folder."""
    resolved = resolve_request(base, GenerationRequest(prompts=("",), seeds=(0,), steps=steps))
    drawing = {
        "base": base.content_hash,
        "steps": steps,
        "guidance_scale": resolved.guidance_scale,
        "scheduler": resolved.scheduler,
        "size": [resolved.height, resolved.width],
    }
    key = hashlib.sha256(json.dumps(drawing, sort_keys=True).encode()).hexdigest()[:12]
    log = open_log(folder / "records.jsonl", {"what": "base", **drawing, "judge": judge.content_hash})
    pictures_dir = folder / f"pictures-{key}"
    pictures_dir.mkdir(parents=True, exist_ok=True)
    return log, pictures_dir


def draw_missing(
    base: BaseModel,
    judge: EmbeddedScorer,
    prompts: Sequence[BasePrompt],
    log: RecordLog,
    pictures_dir: Path,
    *,
    steps: int,
    batch_size: int,
    report: Callable[[str], None] = print,
) -> None:
    """Draw and judge every prompt that has no record yet, batch by batch; what is drawn already is only judged."""
    todo = [prompt for prompt in prompts if prompt.id not in log]
    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        missing = [prompt for prompt in batch if not _path(prompt, pictures_dir).is_file()]
        if missing:
            request = GenerationRequest(
                prompts=tuple(prompt.prompt for prompt in missing), seeds=tuple(prompt.seed for prompt in missing), steps=steps
            )
            for prompt, image in zip(missing, generate(base, request, batch_size=batch_size), strict=True):
                image.save(_path(prompt, pictures_dir))
        images = open_pictures(batch, pictures_dir)
        log.append(judge_pictures(judge, batch, images))
        report(f"{len(log)} of {len(log) + len(todo) - start - len(batch)} pictures")


def judge_pictures(judge: EmbeddedScorer, prompts: Sequence[BasePrompt], images: Sequence[Image.Image]) -> list[Record]:
    """One record a picture: the judge's reading, and which of the prompt's statements hold."""
    cosines = (judge.embed_images(images) * judge.embed_texts([prompt.prompt for prompt in prompts])).sum(dim=1).tolist()
    records: list[Record] = []
    for prompt, reading, cosine in zip(prompts, judge.read(images), cosines, strict=True):
        records.append(
            {
                "id": prompt.id,
                "group": prompt.group,
                "prompt": prompt.prompt,
                "seed": prompt.seed,
                "items": dict(statements(prompt.facts, reading)),
                "cosine": round(cosine, 4),
                "background": reading.background,
                "style": reading.style,
                "found": [
                    [thing.class_name, thing.colour, thing.pattern, round(thing.score, 3), [round(v, 3) for v in thing.box]]
                    for thing in reading.detections
                ],
            }
        )
    return records


def distances(
    judge: EmbeddedScorer,
    prompts: Sequence[BasePrompt],
    pictures: Sequence[Image.Image],
    round_trip: RoundTrip | None,
    num_renders: int,
    note: str,
) -> Table:
    """Fréchet and kernel distance of the drawn pictures to renders of the same prompts, beside the same of renders."""
    rng = np.random.default_rng(RENDER_SEED)
    repeats = -(-num_renders // max(len(prompts), 1))
    scenes = [scene_of(prompt.facts, rng) for _ in range(repeats) for prompt in prompts][:num_renders]
    others = [scene_of(prompt.facts, rng) for prompt in prompts]
    truth = judge.features([world.render(scene) for scene in scenes]).double().numpy()
    sets: dict[str, Sequence[Picture]] = {
        "the base model's pictures": list(pictures),
        "other renders of the prompts": [world.render(scene) for scene in others],
    }
    if round_trip is not None:
        sets["those renders through the autoencoder"] = list(draw(others, round_trip))
    features = {name: judge.features(images).double().numpy() for name, images in sets.items()}
    return distance_table(features, truth, note)


def open_pictures(prompts: Sequence[BasePrompt], pictures_dir: Path) -> list[Image.Image]:
    """The drawn pictures of prompts, in their order."""
    images = []
    for prompt in prompts:
        with Image.open(_path(prompt, pictures_dir)) as image:
            images.append(image.convert("RGB"))
    return images


def write_sheet(records: Sequence[Record], pictures: Sequence[Image.Image], path: Path) -> None:
    """A contact sheet with the prompts and what the judge found wrong."""
    lines = []
    for record in records:
        wrong = [name.removeprefix("object ") for name, holds in record["items"].items() if not holds]
        lines.append(
            [record["id"], *_wrapped(record["prompt"]), *_wrapped("wrong: " + ", ".join(wrong) if wrong else "all right")]
        )
    numbered_sheet(pictures, lines, columns=8, side=144).save(path)


def _wrapped(text: str, width: int = 28, num_lines: int = 3) -> list[str]:
    """Text on `num_lines` lines, the last ones empty where it is short."""
    lines = wrap(text, width)[:num_lines]
    return lines + [""] * (num_lines - len(lines))


def _path(prompt: BasePrompt, pictures_dir: Path) -> Path:
    return pictures_dir / f"{prompt.id}.png"
