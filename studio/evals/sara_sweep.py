"""Learning rates for SaRA on the embedded base: `make sweep-sara`.

Each rate, and each density, teaches the sample concepts once; the embedded guide scores the checkpoints as in any run. Runs
lie in the output folder and are gone on with; a finished one costs nothing again.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from studio.evals.sample_concepts import load_sample, sample_concepts
from studio.evals.tables import Cell, Table
from studio.pipelines.files import atomic_write_json, atomic_write_text
from studio.training.config import load_config
from studio.training.progress import progress_for_terminal
from studio.training.trainer import TrainResult, train

RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
DENSITIES = (0.1,)


@dataclass(frozen=True)
class Point:
    """One run of the sweep."""

    concept: str
    density: float
    learning_rate: float

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return f"{self.concept}-density-{self.density:g}-rate-{self.learning_rate:g}"


def points(concepts: tuple[str, ...], densities: tuple[float, ...], rates: tuple[float, ...]) -> Iterator[Point]:
    """Every combination, the concepts innermost, so that rates can be compared early."""
    for density in densities:
        for rate in rates:
            for concept in concepts:
                yield Point(concept, density, rate)


def run_point(point: Point, folder: Path, steps: int | None) -> TrainResult:
    """Teach one concept; goes on where an earlier call stopped."""
    concept, photos = load_sample(point.concept)
    settings: dict[str, object] = {
        "concept.images": str(photos),
        "concept.class_noun": concept.individual.class_name,
        "adapter.method": "sara",
        "sara.density": point.density,
        "optimizer.learning_rate": point.learning_rate,
        "run.output_dir": str(folder / point.name),
    }
    if steps is not None:
        settings["schedule.steps"] = steps
    return train(load_config(None, settings), progress=progress_for_terminal())


def record_of(point: Point, result: TrainResult) -> dict[str, object]:
    """What the guide says of the chosen checkpoint, beside the base."""
    chosen = next((score for score in result.scores if score.step == result.chosen_step), None)
    return {
        "concept": point.concept,
        "density": point.density,
        "learning_rate": point.learning_rate,
        "chosen_step": result.chosen_step,
        "identity": None if chosen is None else chosen.identity,
        "prompt_fidelity": None if chosen is None else chosen.prompt_fidelity,
        "base_identity": None if result.base_score is None else result.base_score.identity,
        "base_prompt_fidelity": None if result.base_score is None else result.base_score.prompt_fidelity,
        "train_seconds": result.train_seconds,
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the sweep and write records.json and table.txt."""
    parser = argparse.ArgumentParser(prog="python -m studio.evals.sara_sweep", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("outputs/sweep-sara"))
    parser.add_argument("--concept", action="append", choices=sample_concepts(), help="may be repeated; by default all")
    parser.add_argument("--rate", action="append", type=float, help="may be repeated")
    parser.add_argument("--density", action="append", type=float, help="may be repeated")
    parser.add_argument("--steps", type=int)
    options = parser.parse_args(arguments)
    records = []
    wanted = points(
        tuple(options.concept or sample_concepts()), tuple(options.density or DENSITIES), tuple(options.rate or RATES)
    )
    for point in wanted:
        records.append(record_of(point, run_point(point, options.output, options.steps)))
        atomic_write_json(options.output / "records.json", records)
        atomic_write_text(options.output / "table.txt", _table(records))
    print(_table(records))


def _table(records: list[dict[str, object]]) -> str:
    columns = tuple(records[0])
    rows: list[tuple[Cell, ...]] = [
        tuple(f"{value:.4g}" if isinstance(value, float) else str(value) for value in record.values()) for record in records
    ]
    return Table("SaRA on the embedded base, by learning rate", columns, tuple(rows)).text()


if __name__ == "__main__":
    main()
