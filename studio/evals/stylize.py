"""`studio eval stylize`: how often the judge sees the one picture's content and the other's style.

Content pictures are plain drawings; style pictures are in other styles and show other things. Each is learned alone, with
neutral words. For every pair and every way to combine the two the judge, which had no part in anything, reads the drawings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from studio.assets.world.vocabulary import STYLE_PREFIXES
from studio.evals.records import Record, open_log
from studio.evals.statistics import paired_difference, share_interval
from studio.evals.stylize_plan import (
    PROBED,
    WORDS,
    StylePicture,
    StylizeBudget,
    Way,
    content_pictures,
    style_pictures,
    ways,
)
from studio.evals.tables import Cell, Table, write_table
from studio.pipelines.adapters import Adapter, Route, load_adapter
from studio.pipelines.adapters.roles import CONTENT, STYLE
from studio.pipelines.base_model import BaseModel
from studio.pipelines.block_roles import choose_blocks
from studio.pipelines.denoising import attention_stacks
from studio.pipelines.generation import GenerationRequest, generate
from studio.pipelines.pictures import contact_sheet
from studio.pipelines.scoring import EmbeddedScorer
from studio.pipelines.scoring.checklist import PRESENT_FROM
from studio.training.config import config_hash, load_config
from studio.training.data.dataset import load_concept
from studio.training.progress import Progress, Silence
from studio.training.trainer import train
from studio.workflows.stylize import StylizeWishes, plan_stylize


def evaluate_stylize(
    base: BaseModel, judge: EmbeddedScorer, output: Path, budget: StylizeBudget, progress: Progress | None = None
) -> Table:
    """Train what is not trained yet, draw and judge what is not in the records yet, and fold.

    Trained adapters lie in `output/trained` under the hash of all that decides them; records.jsonl, the table and a sheet of
    pictures in `output`.

    Raises:
        UserError: the base model's blocks are not known, or it is not the embedded family, which alone the judge can read.
    """
    chosen = choose_blocks(base)
    probed = (chosen.blocks[CONTENT][0], chosen.blocks[STYLE][0])
    plan = ways(attention_stacks(base.unet), probed, budget, base.family.train_defaults("b-lora").batch_size)
    header = {"what": "stylize 1", "base": base.content_hash, "judge": judge.content_hash, "steps": budget.steps}
    log = open_log(output / "records.jsonl", header)
    contents, styles = content_pictures(budget.num_contents), style_pictures(budget.num_styles)
    workshop = _Workshop(base, output, budget, Silence() if progress is None else progress)
    cells = [(way, content, style) for way in plan for content in contents for style in styles]
    for number, (way, content, style) in enumerate(cells, start=1):
        adapters = workshop.adapters(way, content, style)
        ids = [f"{_key(way, adapters)}/{content.name}/{style.name}/{seed}" for seed in range(budget.num_seeds)]
        if all(each in log for each in ids):
            continue
        workshop.say(f"pictures {number} of {len(cells)}: {way.name}, {content.name} + {style.name}")
        images = draw_pair(base, way, content, style, adapters, num_seeds=budget.num_seeds, steps=budget.steps)
        for seed, image in enumerate(images):
            path = output / "pictures" / way.name.replace(" ", "-") / f"{content.name}+{style.name}-{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        judged = [record for record in judge_pictures(judge, way, content, style, images, ids) if record["id"] not in log]
        log.append(judged)
    names = {way.name for way in plan}
    pairs = {f"{content.name}+{style.name}" for content in contents for style in styles}
    used = [record for record in log.all() if record["way"] in names and record["pair"] in pairs]
    sheet = _sheet(output, plan, contents, styles)
    sheet.save(output / "stylize.png")
    table = stylize_table(used, plan, chosen.probe is not None and not chosen.probe.separates)
    write_table(table, output, "stylize")
    return table


class _Workshop:
    """Trains each (way, picture) once."""

    def __init__(self, base: BaseModel, output: Path, budget: StylizeBudget, progress: Progress) -> None:
        self.base = base
        self.output = output
        self.budget = budget
        self.progress = progress
        self._adapters: dict[tuple[str, str], Adapter] = {}

    def say(self, text: str) -> None:
        """To the person who waits."""
        self.progress.say(text)

    def adapters(self, way: Way, content: StylePicture, style: StylePicture) -> tuple[Adapter, Adapter] | None:
        """The two pictures' adapters; None for a way that trains nothing."""
        if way.method is None:
            return None
        return self._adapter(way, content), self._adapter(way, style)

    def _adapter(self, way: Way, picture: StylePicture) -> Adapter:
        key = (way.name, picture.name)
        if key not in self._adapters:
            number = len(self._adapters) + 1
            self.say(f"training {number} of {self.budget.num_trainings}: {way.name}, {picture.name}")
            self._adapters[key] = self._train(way, picture)
        return self._adapters[key]

    def _train(self, way: Way, picture: StylePicture) -> Adapter:
        path = self.output / "photos" / f"{picture.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.image().save(path)
        settings: dict[str, object] = {
            "adapter.method": way.method,
            "concept.images": path,
            "concept.token": picture.token,
            "model.base": self.base.source,
            "run.name": picture.name,
            "run.sample_every": 0,
            **way.settings,
        }
        resolved, dataset = load_concept(load_config(None, settings), self.base.family)
        # One checkpoint, at the end; it changes no weight and so is not in the hash.
        settings |= {"run.checkpoint_every": resolved.schedule.steps}
        folder = f"{picture.name}-{config_hash(resolved)[:8]}{dataset.signature[:4]}{self.base.content_hash[:4]}"
        settings["run.output_dir"] = self.output / "trained" / folder
        return load_adapter(train(load_config(None, settings), progress=self.progress, scorer=None).adapter_path)


def draw_pair(
    base: BaseModel,
    way: Way,
    content: StylePicture,
    style: StylePicture,
    adapters: tuple[Adapter, Adapter] | None,
    *,
    num_seeds: int,
    steps: int,
) -> list[Image.Image]:
    """The pictures of one pair in one way. All ways have the same seeds, and all but "words" the same prompt."""
    if adapters is None:
        prompt = (
            f"{STYLE_PREFIXES[style.scene.style][0]} {'an' if content.class_name[0] in 'aeiou' else 'a'} {content.class_name}"
        )
        routes: list[Route] = []
    else:
        plan = plan_stylize(base, StylizeWishes(content=adapters[0], style=adapters[1]))
        prompt = plan.prompt
        routes = plan.routes if way.blocks is not None else [Route(adapter) for adapter in adapters]
    request = GenerationRequest(prompts=(prompt,) * num_seeds, seeds=tuple(range(num_seeds)), steps=steps)
    return generate(base, request, routes, batch_size=num_seeds)


def judge_pictures(
    judge: EmbeddedScorer, way: Way, content: StylePicture, style: StylePicture, images: Sequence[Image.Image], ids: Sequence[str]
) -> list[Record]:
    """One record per picture: is the content's class there, is it the other picture's style, are both."""
    records: list[Record] = []
    for seed, (reading, record_id) in enumerate(zip(judge.read(images), ids, strict=True)):
        seen = [thing.class_name for thing in reading.detections if thing.score >= PRESENT_FROM]
        has_content, has_style = content.class_name in seen, reading.style == style.scene.style
        records.append(
            {
                "id": record_id,
                "way": way.name,
                "pair": f"{content.name}+{style.name}",
                "seed": seed,
                "seen": seen,
                "style_seen": reading.style,
                "content": has_content,
                "style": has_style,
                "both": has_content and has_style,
                "leaked": style.class_name in seen,
            }
        )
    return records


def stylize_table(records: Sequence[Record], plan: Sequence[Way], no_separation: bool) -> Table:
    """A row for each way, and the difference of each to the probed blocks, pair by pair and seed by seed."""
    by_way = {way.name: {(r["pair"], r["seed"]): r for r in records if r["way"] == way.name} for way in plan}
    ours = by_way[PROBED]
    rows: list[tuple[Cell, ...]] = []
    for way in plan:
        theirs = by_way[way.name]
        shares = [
            share_interval([bool(record[key]) for record in theirs.values()]) for key in ("both", "content", "style", "leaked")
        ]
        cells = [cell for cell in ours if cell in theirs]
        difference = paired_difference(
            [float(ours[cell]["both"]) for cell in cells],
            [float(theirs[cell]["both"]) for cell in cells],
            [cell[0] for cell in cells],
        )
        rows.append((way.name, len(theirs), *shares, None if way.name == PROBED else difference, " + ".join(way.blocks or ())))
    notes = (
        "both: the judge sees the content picture's class and the style picture's style. leaked: the style picture's own thing",
        f"95 % intervals: Wilson for shares, bootstrap over {len({cell[0] for cell in ours})} pairs of pictures for differences",
        f"all learn from one picture each with the neutral words 'a ohwx'; {WORDS}: the base model, with both said in words",
    )
    warning = ("The probe of this base model found no separation.",) if no_separation else ()
    return Table(
        f"Content of one picture, style of another: {len({cell[0] for cell in ours})} held-out pairs",
        ("way", "pictures", "both", "content", "style", "leaked", "probed - this", "content + style block"),
        tuple(rows),
        (*notes, *warning),
    )


def _key(way: Way, adapters: tuple[Adapter, Adapter] | None) -> str:
    """A picture's record belongs to the adapters that drew it, and to the way they were put together."""
    return way.name if adapters is None else "+".join([way.name, *(adapter.content_hash()[:12] for adapter in adapters)])


def _sheet(output: Path, plan: Sequence[Way], contents: Sequence[StylePicture], styles: Sequence[StylePicture]) -> Image.Image:
    """First rows: the pictures that were learned from; then each way's first picture of each pair."""
    pairs = [(content, style) for content in contents for style in styles]
    size = (96, 96)
    rows: list[list[Image.Image]] = [[content.image() for content, _ in pairs], [style.image() for _, style in pairs]]
    picture_of: Callable[[Way, StylePicture, StylePicture], Path] = lambda way, content, style: (  # noqa: E731
        output / "pictures" / way.name.replace(" ", "-") / f"{content.name}+{style.name}-0.png"
    )
    rows += [[Image.open(picture_of(way, *pair)).convert("RGB") for pair in pairs] for way in plan]
    images = [image.resize(size, Image.Resampling.LANCZOS) for row in rows for image in row]
    labels = [f"{content.class_name} + {style.scene.style}" for content, style in pairs]
    return contact_sheet(images, column_labels=labels, row_labels=["content", "style", *(way.name for way in plan)])
