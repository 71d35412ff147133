"""`studio eval selma`: do merged skill experts follow hard prompts better than the base, or than one adapter for everything?

The experts learn from the base model's own pictures of prompts that are not among the evaluated ones; which pictures they
learn from is decided by the guide or by nobody, never by the judge, which alone reads the results. A figure is the share of a
prompt's statements that hold, as in DSG and TIFA; pictures of the same prompt and seed are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from studio.evals.base_prompts import BasePrompt, load_base_prompts, statements
from studio.evals.records import Record, RecordLog, open_log
from studio.evals.selma_plan import SelmaBudget, hard_prompts
from studio.evals.selma_tables import claims, kinds_table, scores_table
from studio.evals.tables import Table, write_table
from studio.pipelines.adapters import Adapter, Route, load_adapter
from studio.pipelines.base_model import BaseModel
from studio.pipelines.generation import GenerationRequest, generate
from studio.pipelines.pictures import contact_sheet, save_picture
from studio.pipelines.scoring import EmbeddedScorer
from studio.training.progress import Progress, Silence
from studio.workflows.selma import SelmaSettings, run_selma
from studio.workflows.selma_pictures import Drawing
from studio.workflows.selma_skills import builtin_skills

BASE, MERGED, MIXTURE, UNFILTERED = "base", "merged experts", "one LoRA on the mixture", "merged, pictures unfiltered"
KEEP_FROM = 1.0
"""A training picture is kept if the guide sees everything that its prompt says."""
BATCH = 16
SHEET_COLUMNS = 8


@dataclass(frozen=True, eq=False)
class Arm:
    """What draws: an adapter, or the base model alone."""

    name: str
    adapter: Adapter | None

    @property
    def key(self) -> str:
        """Records belong to the weights that drew the pictures."""
        return self.name if self.adapter is None else f"{self.name} {self.adapter.content_hash()[:12]}"


def evaluate_selma(
    base: BaseModel,
    guide: EmbeddedScorer,
    judge: EmbeddedScorer,
    output: Path,
    budget: SelmaBudget,
    *,
    split: str = "report",
    progress: Progress | None = None,
) -> tuple[list[Table], list[str]]:
    """Make the experts, draw the prompts with every arm, judge, and fold. What is there already is not made again.

    Returns:
        The tables, and the claims as sentences, each with its figure and whether it holds.
    """
    progress = Silence() if progress is None else progress
    prompts = hard_prompts(split, budget.num_each)
    arms = [Arm(BASE, None), *_trained(base, guide, output, budget, prompts, progress)]
    header = {"what": "selma 1", "split": split, "base": base.content_hash, "judge": judge.content_hash, "steps": budget.steps}
    log = open_log(output / "records.jsonl", header)
    for arm in arms:
        _draw(base, judge, arm, prompts, log, output, budget.steps, progress)
    by_id = {record["id"]: record for record in log.all()}
    found = {arm.name: [by_id[f"{arm.key}/{prompt.id}"] for prompt in prompts] for arm in arms}
    note = (
        f"base {base.content_hash[:12]}, judge {judge.content_hash[:12]}, {budget.steps} steps, {len(prompts)} prompts, one "
        "picture each; 95 % intervals by bootstrap over prompts, differences paired"
    )
    tables = [scores_table(found, BASE, MERGED, note), kinds_table(found, BASE, MERGED, note)]
    for table, name in zip(tables, ("selma", "selma-kinds"), strict=True):
        write_table(table, output, name)
    _sheet(output, arms, prompts).save(output / "selma.png")
    return tables, claims(found, BASE, MERGED, MIXTURE)


def _trained(
    base: BaseModel,
    guide: EmbeddedScorer,
    output: Path,
    budget: SelmaBudget,
    prompts: Sequence[BasePrompt],
    progress: Progress,
) -> list[Arm]:
    never = frozenset(prompt.prompt for prompt in (*prompts, *load_base_prompts()))
    drawing = Drawing(steps=budget.steps, attempts=budget.attempts, keep_from=KEEP_FROM, batch_size=BATCH)
    settings = SelmaSettings(num_prompts=budget.num_prompts, drawing=drawing, never=never, train=budget.train, mixture=True)
    made = run_selma(base, builtin_skills(), output / "filtered", settings, scorer=guide, progress=progress)
    assert made.mixture is not None
    arms = [Arm(f"expert: {name}", load_adapter(path)) for name, path in made.experts.items()]
    arms += [Arm(MIXTURE, load_adapter(made.mixture)), Arm(MERGED, load_adapter(made.merged))]
    if budget.unfiltered:
        plain = replace(settings, drawing=replace(drawing, attempts=1, keep_from=None), mixture=False)
        arms.append(
            Arm(
                UNFILTERED,
                load_adapter(run_selma(base, builtin_skills(), output / "unfiltered", plain, progress=progress).merged),
            )
        )
    return arms


def _draw(
    base: BaseModel,
    judge: EmbeddedScorer,
    arm: Arm,
    prompts: Sequence[BasePrompt],
    log: RecordLog,
    output: Path,
    steps: int,
    progress: Progress,
) -> None:
    """Draw and judge what has no record yet, a batch at a time."""
    todo = [prompt for prompt in prompts if f"{arm.key}/{prompt.id}" not in log]
    routes = [] if arm.adapter is None else [Route(arm.adapter)]
    for start in range(0, len(todo), BATCH):
        batch = todo[start : start + BATCH]
        request = GenerationRequest(
            prompts=tuple(prompt.prompt for prompt in batch), seeds=tuple(prompt.seed for prompt in batch), steps=steps
        )
        images = generate(base, request, routes, batch_size=BATCH)
        for prompt, image in zip(batch, images, strict=True):
            save_picture(_picture(output, arm, prompt), image, None)
        log.append(judged(judge, arm, batch, images))
        progress.say(f"{arm.name}: {start + len(batch)} of {len(todo)} pictures")


def judged(judge: EmbeddedScorer, arm: Arm, prompts: Sequence[BasePrompt], images: Sequence[Image.Image]) -> list[Record]:
    """One record a picture: which of the prompt's statements hold."""
    records: list[Record] = []
    for prompt, reading in zip(prompts, judge.read(images), strict=True):
        items = statements(prompt.facts, reading)
        records.append(
            {
                "id": f"{arm.key}/{prompt.id}",
                "arm": arm.name,
                "prompt_id": prompt.id,
                "group": prompt.group,
                "prompt": prompt.prompt,
                "seed": prompt.seed,
                "items": dict(items),
            }
        )
    return records


def _picture(output: Path, arm: Arm, prompt: BasePrompt) -> Path:
    return output / "pictures" / arm.name.replace(": ", "-").replace(" ", "-") / f"{prompt.id.replace(' ', '-')}.png"


def _sheet(output: Path, arms: Sequence[Arm], prompts: Sequence[BasePrompt]) -> Image.Image:
    """A row per arm, the first prompts of every group."""
    each = -(-SHEET_COLUMNS // len({prompt.group for prompt in prompts}))
    chosen: list[BasePrompt] = []
    for prompt in prompts:
        if sum(other.group == prompt.group for other in chosen) < each:
            chosen.append(prompt)
    images = []
    for arm in arms:
        for prompt in chosen:
            with Image.open(_picture(output, arm, prompt)) as image:
                images.append(image.convert("RGB"))
    return contact_sheet(images, column_labels=[prompt.prompt for prompt in chosen], row_labels=[arm.name for arm in arms])
