"""What a batch leaves for people: sheets with labelled axes, scores, and one page that holds it all."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from studio.batch.page import Cell, batch_page
from studio.batch.sheets import grid_sheets
from studio.batch.tasks import TrainTask
from studio.pipelines.files import atomic_write_text
from studio.pipelines.pictures import save_picture

if TYPE_CHECKING:
    from studio.batch.folder import BatchFolder
    from studio.batch.runner import Planned

MAX_SHEET_PICTURES = 400
_SCORED_AT_ONCE = 32


@dataclass(frozen=True)
class DonePicture:
    """A picture that is there. `axes`: where it stands; `score`: of its prompt, if it was scored."""

    index: int
    file: Path
    title: str
    seed: int
    axes: Mapping[str, str]
    adapters: str
    score: float | None = None


def write_reports(planned: Planned, folder: BatchFolder, axes: Sequence[str], scorer: str | None) -> None:
    """Write sheets, scores and the page, of all that is done so far.

    Args:
        axes: keys that vary, the slowest first. scorer: as `load_scorer` takes it; None for no scores.
    """
    done = folder.done(planned.tasks)
    pictures = _pictures(planned, done)
    if scorer is not None and pictures:
        pictures = _scored(pictures, scorer)
        atomic_write_text(folder.scores, scores_csv(pictures, axes))
    sheets = grid_sheets(pictures[:MAX_SHEET_PICTURES], axes, planned.batch.grid, planned.batch.name) if pictures else []
    names = []
    for number, sheet in enumerate(sheets):
        names.append("contact-sheet.png" if len(sheets) == 1 else f"contact-sheet-{number + 1:02d}.png")
        save_picture(folder.path / names[-1], sheet, None)
    outcomes = folder.outcomes()
    failures = [
        (planned.requests[task.index].where, str(outcomes[task.id].get("error", "")))
        for task in planned.tasks
        if task.id not in done and outcomes.get(task.id, {}).get("state") == "failed"
    ]
    failures += [(refused.expanded.where, str(refused.error)) for refused in planned.refused]
    trainings = [
        (task.title, done[task.id].relative_to(folder.path).as_posix())
        for task in planned.tasks
        if isinstance(task, TrainTask) and task.id in done
    ]
    page = batch_page(
        planned.batch.name,
        [_cell(picture) for picture in pictures],
        axes,
        total=len(planned.ids) + len(planned.refused),
        sheets=names,
        failures=failures,
        trainings=trainings,
    )
    atomic_write_text(folder.report, page)


def scores_csv(pictures: Sequence[DonePicture], axes: Sequence[str]) -> str:
    """A line a picture: its place on the axes, and how far it shows what its prompt says."""
    axes = [axis for axis in axes if axis not in ("seed", "prompt")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["index", "file", "seed", "prompt", *axes, "prompt_fidelity"])
    for picture in pictures:
        score = "" if picture.score is None else f"{picture.score:.4f}"
        places = [picture.axes.get(axis, "") for axis in axes]
        writer.writerow([picture.index, picture.file.name, picture.seed, picture.title, *places, score])
    return out.getvalue()


def _pictures(planned: Planned, done: Mapping[str, Path]) -> list[DonePicture]:
    """Every request's picture that is there; equal requests share one."""
    places = planned.places()
    found = []
    for request in planned.requests:
        task_id = planned.ids.get(request.index)
        if task_id is None or task_id not in done:
            continue
        task = places[task_id][0]
        if isinstance(task, TrainTask):
            continue
        values: Any = task.model_dump(include={"adapters", "plan"})
        used = [f"{Path(each['file']['path']).stem}:{each['strength']:g}" for each in values.get("adapters", ())]
        used += [
            f"{Path(each['adapter']).stem}:{each.get('strength', 1.0):g}" for each in values.get("plan", {}).get("entries", ())
        ]
        found.append(DonePicture(request.index, done[task_id], task.title, task.seed, request.axes, " + ".join(used)))
    return found


def _scored(pictures: Sequence[DonePicture], name: str) -> list[DonePicture]:
    from studio.pipelines.scoring import load_scorer

    scorer = load_scorer(name)
    found = []
    for start in range(0, len(pictures), _SCORED_AT_ONCE):
        part = pictures[start : start + _SCORED_AT_ONCE]
        images = []
        for picture in part:
            with Image.open(picture.file) as image:
                images.append(image.convert("RGB"))
        scores = scorer.prompt_fidelity(images, [picture.title for picture in part])
        found += [replace(picture, score=float(score)) for picture, score in zip(part, scores, strict=True)]
    return found


def _cell(picture: DonePicture) -> Cell:
    return Cell(
        file=picture.file,
        title=picture.title,
        seed=picture.seed,
        axes=picture.axes,
        adapters=picture.adapters,
        score=picture.score,
    )
