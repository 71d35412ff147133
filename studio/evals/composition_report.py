"""Everything that is made from the records of `studio eval composition`: tables and grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from studio.evals.composition_bars import Bar, bars, bars_table, rankings_table
from studio.evals.composition_drawing import Way
from studio.evals.composition_outcomes import Outcomes, best_ways
from studio.evals.composition_plan import FOUR, PAIRS, STYLE, THREE, Budget, prompts_of
from studio.evals.composition_tables import (
    COUNTS,
    adapters_table,
    composition_table,
    parts_table,
    sampling_minutes,
    sweep_table,
)
from studio.evals.composition_ways import ALONE, BASE, BOXES, LORA_COMPOSER, NO_ADAPTERS, SWAPPED, TRUTH
from studio.evals.tables import Table, write_table
from studio.evals.trainers_training import Training
from studio.pipelines.adapters import Adapter
from studio.pipelines.pictures import contact_sheet


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The records of a finished evaluation, and what is made of them.

    Attributes:
        merge: the plain merge at its best strength. free, boxed, many, parts: names of ways, in the tables' order.
    """

    budget: Budget
    header: Mapping[str, object]
    outcomes: Outcomes
    trainings: Mapping[str, Training]
    adapters: Mapping[str, Adapter]
    merge: Way
    free: tuple[str, ...]
    boxed: tuple[str, ...]
    many: tuple[str, ...]
    parts: tuple[str, ...]

    @cached_property
    def bars(self) -> list[Bar]:
        """What the strategies are held to."""
        return bars(self.outcomes, self.merge.name, [name for name in self.free if self.outcomes.of(name)])

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The tables by file name."""
        found: dict[str, Table] = {
            "adapters": adapters_table(self.trainings, self.adapters, self.outcomes),
            "merge-strength": sweep_table(self.outcomes, self.budget, self.merge.strength),
            "pairs": composition_table(self.outcomes, self._rows(self.free), "Two concepts, without boxes"),
            "pairs-boxes": composition_table(
                self.outcomes, self._rows([*self.boxed, *_no_adapters(self.boxed)]), "Two concepts, with boxes"
            ),
        }
        for group, count in COUNTS.items():
            rows = self._rows(self.many)
            found[group] = composition_table(self.outcomes, rows, f"{group.capitalize()} concepts", [group], count)
        if self.parts:
            full = LORA_COMPOSER + BOXES
            found["lora-composer-parts"] = parts_table(self.outcomes, full, self.parts)
        found["rankings"] = rankings_table(self.outcomes, self.merge.name, STYLE)
        found["bars"] = bars_table(self.bars)
        return found

    @property
    def minutes(self) -> float:
        """CPU time of sampling."""
        return sampling_minutes(self.outcomes.records)

    def _rows(self, ways: Sequence[str]) -> list[str]:
        """The ways with the controls around them."""
        rows = [BASE.name]
        for way in ways:
            rows += [way, way + SWAPPED]
        return [*rows, ALONE, TRUTH]


def write_report(findings: Findings, output: Path) -> None:
    """Write the tables (.txt, .csv, .json) and the grids."""
    for name, table in findings.tables.items():
        write_table(table, output, name)
    for group in (*PAIRS, THREE, FOUR):
        picture = grid(findings, group, output)
        if picture is not None:
            picture.save(output / f"grid-{group}.png", optimize=True)
    overview(findings, output).save(output / "overview.png", optimize=True)


def overview(findings: Findings, output: Path) -> Image.Image:
    """A few prompts of pairs by the base, the plain merge, the best ways and as it truly looks: the documentation's picture."""
    outcomes, merge = findings.outcomes, findings.merge.name
    best = [best_ways(outcomes, [name for name in group if name != merge], 1) for group in (findings.free, findings.boxed)]
    prompts = [prompt for group in PAIRS for prompt in prompts_of(group, min(2, findings.budget.num_prompts))]
    labels = {
        BASE.name: "base model",
        merge: merge,
        **{name: name for names in best for name in names},
        TRUTH: "as they truly look",
    }
    present = [way for way in labels if all(_path(output, way, prompt.id).is_file() for prompt in prompts)]
    columns = [prompt.text for prompt in prompts]
    return _sheet(present, [prompt.id for prompt in prompts], columns, output, [labels[way] for way in present])


def grid(findings: Findings, group: str, output: Path) -> Image.Image | None:
    """First seeds of a group: a column per prompt, a row per way, what was asked for in the last row."""
    pairs = group in PAIRS
    budget = findings.budget
    prompts = prompts_of(group, budget.num_prompts if pairs else budget.num_many)
    ways = [*findings.free, *findings.boxed] if pairs else list(findings.many)
    rows = [BASE.name, *ways, TRUTH]
    present = [way for way in rows if all(_path(output, way, prompt.id).is_file() for prompt in prompts)]
    if not present:
        return None
    return _sheet(present, [prompt.id for prompt in prompts], [prompt.text for prompt in prompts], output, present)


def _sheet(ways: Sequence[str], prompts: Sequence[str], columns: Sequence[str], output: Path, rows: Sequence[str]) -> Image.Image:
    images = [Image.open(_path(output, way, prompt)).convert("RGB") for way in ways for prompt in prompts]
    return contact_sheet(images, column_labels=columns, row_labels=rows)


def _path(output: Path, way: str, prompt: str) -> Path:
    """The first seed's picture."""
    return output / "pictures" / way / prompt / "0.png"


def _no_adapters(ways: Sequence[str]) -> list[str]:
    return [way + NO_ADAPTERS for way in ways if way.startswith(LORA_COMPOSER)]
