"""Layouts of other people's pictures, tried with things of the toy world, and two concepts from folders of photos.

`python -m studio.evals.composition_layouts LAYOUTS.json` draws every layout of a JSON file by every strategy that takes regions.
The file has a list "layouts" of {"name", "width", "height", "boxes": [[left, top, right, bottom], …] in fractions}. In place of
the people there stand trained individuals of the composition evaluation; the canvas keeps its aspect, at the base's height.
`--photos FOLDER:NOUN`, twice or more, trains on each folder and composes the concepts side by side. It is a trial of shapes,
counts and real photos: nothing may break. What the judge sees of the toy things in their boxes is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from PIL import Image

from studio.assets.world import RARE_TOKENS, Box
from studio.composition.drawing import compile_scene, draw_batches
from studio.composition.plan_files import plan_from_values
from studio.composition.scene import make_scene
from studio.composition.strategies import STRATEGIES
from studio.evals.composition_judge import Gallery, judge_composition
from studio.evals.composition_plan import INDIVIDUALS, QUICK, ComposedPrompt, TrainedIndividual
from studio.evals.composition_subjects import ComposedIndividual, item_of
from studio.evals.tables import Cell, Table, write_table
from studio.evals.trainers_training import TrainingCache
from studio.pipelines.adapters import Adapter, load_adapter
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.errors import ConfigError, Interrupted, MissingFileError, StudioError, UserError
from studio.pipelines.pictures import contact_sheet
from studio.pipelines.scoring import embedded_referee
from studio.training.config import load_config
from studio.training.signals import catch_stop_signals
from studio.training.trainer import train

PHOTO_STEPS = 120
STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A canvas in pixels, and a box for each thing."""

    name: str
    width: int
    height: int
    boxes: tuple[Box, ...]


@dataclass(frozen=True, kw_only=True)
class LayoutPrompt(ComposedPrompt):
    """A prompt whose things stand in a layout's boxes."""

    layout: Layout

    @property
    def boxes(self) -> tuple[Box, ...]:
        """The layout's."""
        return self.layout.boxes


def read_layouts(path: Path) -> list[Layout]:
    """The layouts of a file.

    Raises:
        MissingFileError, ConfigError: there is no file, or it holds something else.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no file {path}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["layouts"]
        return [
            Layout(
                name=str(each["name"]),
                width=int(each["width"]),
                height=int(each["height"]),
                boxes=tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in each["boxes"]),
            )
            for each in found
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{path} holds no layouts: it should have a list "layouts" of tables with name, width, height and boxes.'
        ) from error


def canvas_of(layout: Layout, base: BaseModel) -> tuple[int, int]:
    """Width and height on this base: the layout's aspect at the base's height, in sizes that the base can draw."""
    multiple = base.family.size_multiple
    width = round(base.size * layout.width / layout.height / multiple) * multiple
    return max(multiple, width), base.size


def prompt_of(layout: Layout, number: int) -> LayoutPrompt:
    """The individuals in the layout's boxes, from left to right, in an order of its own for every layout."""
    turned = [*INDIVIDUALS[::3], *INDIVIDUALS[1::3], *INDIVIDUALS[2::3]]  # four classes first, then the next of each
    things = tuple(turned[(number + index) % len(turned)] for index in range(len(layout.boxes)))
    return LayoutPrompt(id=layout.name, group=layout.name, things=things, background="grass", seed=70 + number, layout=layout)


def draw_layout(
    base: BaseModel, prompt: LayoutPrompt, strategy: str, adapters: Mapping[str, Adapter], *, steps: int = STEPS, num: int = 2
) -> list[Image.Image]:
    """Pictures of a layout."""
    entries = [
        {
            "adapter": f"{thing.name}.safetensors",
            "name": thing.name,
            "words": thing.words,
            "region": {"box": list(box)},
        }
        for thing, box in zip(prompt.things, prompt.boxes, strict=True)
    ]
    width, height = canvas_of(prompt.layout, base)
    return _draw(
        base, prompt.text, entries, [adapters[t.name] for t in prompt.things], strategy, prompt.seed, steps, num, (width, height)
    )


def photo_concepts(
    base: BaseModel, folders: Sequence[tuple[Path, str]], output: Path, *, steps: int = PHOTO_STEPS
) -> list[tuple[TrainedIndividual, Adapter]]:
    """A LoRA for each folder of photos, each with a word of its own; finished trainings are not made again."""
    found = []
    for number, (folder, noun) in enumerate(folders):
        word = RARE_TOKENS[number]
        settings: dict[str, object] = {
            "concept.images": folder,
            "concept.class_noun": noun,
            "concept.token": word,
            "model.base": base.source,
            "schedule.steps": steps,
            "run.checkpoint_every": steps,
            "run.sample_every": 0,
            "run.output_dir": output / "photos" / f"{number}-{folder.name}",
        }
        adapter = load_adapter(train(load_config(None, settings), scorer=None).adapter_path)
        thing = TrainedIndividual(class_name=noun, seed=number, token=word, kind="LoRA", method="dreambooth-lora")
        found.append((thing, adapter))
    return found


def draw_photo_concepts(
    base: BaseModel, concepts: Sequence[tuple[TrainedIndividual, Adapter]], strategy: str, *, steps: int = STEPS, num: int = 2
) -> list[Image.Image]:
    """The concepts side by side, in boxes where the strategy takes them."""
    uses_regions = next(kind.uses_regions for kind in STRATEGIES if kind.name == strategy)
    entries: list[dict[str, Any]] = []
    for index, (thing, _) in enumerate(concepts):
        entry: dict[str, Any] = {"adapter": f"{index}.safetensors", "name": thing.class_name, "words": thing.words}
        if uses_regions:
            box = [index / len(concepts), 0.1, (index + 1) / len(concepts), 0.95]
            entry["region"] = {"box": box}
        entries.append(entry)
    text = " and ".join(f"a {thing.words}" for thing, _ in concepts) + " on the grass"
    return _draw(base, text, entries, [adapter for _, adapter in concepts], strategy, 7, steps, num, (base.size, base.size))


def _draw(
    base: BaseModel,
    text: str,
    entries: Sequence[Mapping[str, Any]],
    adapters: Sequence[Adapter],
    strategy: str,
    seed: int,
    steps: int,
    num: int,
    size: tuple[int, int],
) -> list[Image.Image]:
    values = {
        "prompt": text,
        "entries": [dict(entry) for entry in entries],
        "strategy": strategy,
        "seed": seed,
        "num_images": num,
        "steps": steps,
        "width": size[0],
        "height": size[1],
    }
    compiled = compile_scene(make_scene(plan_from_values(values), base, adapters))
    return [picture for batch in draw_batches(compiled, batch_size=num) for picture in batch]


def try_layouts(
    path: Path, photos: Sequence[tuple[Path, str]], output: Path, trained: Path, *, steps: int = STEPS
) -> list[Table]:
    """Draw all layouts and the photos' concepts, and write a grid and a table for each into `output`.

    Args:
        trained: the folder of trainings that `studio eval composition` keeps; what is missing there is trained.
    """
    layouts = read_layouts(path)
    base = load_base(None)
    adapters = _individuals(base, trained)
    gallery = Gallery(base, embedded_referee("judge"))
    chosen = [kind.name for kind in STRATEGIES if kind.uses_regions]
    rows: list[tuple[Cell, ...]] = []
    output.mkdir(parents=True, exist_ok=True)
    for number, layout in enumerate(layouts):
        prompt = prompt_of(layout, number)
        images: list[Image.Image] = []
        for strategy in chosen:
            pictures = draw_layout(base, prompt, strategy, adapters, steps=steps)
            judged = judge_composition(gallery, prompt, pictures, boxed=True)
            things = [thing for record in judged for thing in record["things"]]  # type: ignore[attr-defined]
            in_boxes = sum(thing["present"] and thing["in_place"] for thing in things) / len(things)
            right = sum(thing["right"] and thing["in_place"] for thing in things) / len(things)
            width, height = pictures[0].size
            rows.append((layout.name, f"{width}x{height}", len(layout.boxes), strategy, len(pictures), in_boxes, right))
            images += pictures
            typer.echo(f"{layout.name}: {strategy}", err=True)
        contact_sheet(images, columns=2, row_labels=chosen, title=prompt.text).save(output / f"{layout.name}.png")
    tables = [
        Table(
            title="Layouts",
            columns=("layout", "canvas", "things", "strategy", "pictures", "classes in boxes", "right in boxes"),
            rows=tuple(rows),
            notes=("shares of single things, read by the judge, which sees pictures squeezed into a square",),
        )
    ]
    if photos:
        tables.append(_try_photos(base, photos, output, steps))
    for table in tables:
        write_table(table, output, table.title.lower().replace(" ", "-"))
    return tables


def _try_photos(base: BaseModel, photos: Sequence[tuple[Path, str]], output: Path, steps: int) -> Table:
    concepts = photo_concepts(base, photos, output)
    rows: list[tuple[Cell, ...]] = []
    images: list[Image.Image] = []
    labels = []
    for kind in STRATEGIES:
        try:
            pictures = draw_photo_concepts(base, concepts, kind.name, steps=steps)
        except UserError as error:
            rows.append((kind.name, 0, str(error)))
            continue
        rows.append((kind.name, len(pictures), "drawn"))
        images += pictures
        labels.append(kind.name)
    title = " and ".join(thing.words for thing, _ in concepts)
    contact_sheet(images, columns=2, row_labels=labels, title=title).save(output / "photos.png")
    return Table(title="Concepts from photos", columns=("strategy", "pictures", "result"), rows=tuple(rows))


def _individuals(base: BaseModel, trained: Path) -> dict[str, Adapter]:
    cache = TrainingCache(trained, base, QUICK.settings)
    with catch_stop_signals() as stop:
        return {
            thing.name: load_adapter(cache.training(item_of(subject), subject, stop).adapter_path)
            for thing in INDIVIDUALS
            for subject in (ComposedIndividual(thing),)
        }


def photo_folder(text: str) -> tuple[Path, str]:
    """FOLDER:NOUN as both; raises UserError."""
    folder, colon, noun = text.rpartition(":")
    if not colon or not folder or not noun:
        raise UserError(f"--photos {text!r} should be FOLDER:NOUN, such as photos/rex:dog.")
    return Path(folder), noun


app = typer.Typer(add_completion=False)


@app.command()
def main(
    layouts: Path,
    photos: list[str] | None = None,
    output: Path = Path("outputs/eval/layouts"),
    trained: Path = Path("outputs/eval/trained"),
    steps: int = STEPS,
) -> None:
    """Draw the layouts of a JSON file with things of the toy world; see the module's docstring."""
    torch.set_num_threads(1)
    try:
        for table in try_layouts(layouts, [photo_folder(text) for text in photos or []], output, trained, steps=steps):
            typer.echo(table.text())
    except Interrupted:
        raise
    except StudioError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(error.exit_code) from error


if __name__ == "__main__":
    app()
