"""`studio eval concept`: train on several individuals, judge each, and fold the records into one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from studio.evals.concept import ARMS, NUM_SEEDS, Concept, draw_arm, judge_arm, peer_embeddings, verdict
from studio.evals.records import Record, RecordLog, open_log
from studio.evals.tables import Table, write_table
from studio.pipelines.adapters import Route, load_adapter
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.pictures import contact_sheet
from studio.pipelines.scoring import EmbeddedScorer, embedded_referee
from studio.training.config import load_config
from studio.training.progress import Progress
from studio.training.trainer import TrainResult, train

TOKEN = "ohwx"  # noqa: S105 (a word, no secret)
SPLITS: dict[str, tuple[tuple[str, int], ...]] = {
    "tune": (("robot", 101), ("cat", 102), ("mug", 103)),
    "report": (("dog", 201), ("car", 202), ("mushroom", 203)),
}
"""Settings are chosen on the individuals of `tune`, and reported on those of `report`, which nothing was chosen on."""


def evaluate_concepts(split: str, output: Path, progress: Progress, settings: Mapping[str, str], steps: int = 30) -> Table:
    """Train and judge every individual of a split; runs and records that are there already are not made again.

    Writes records.jsonl, the table and one contact sheet per individual into `output`.
    """
    base, judge = load_base(None), embedded_referee("judge")
    header = {"split": split, "base": base.content_hash, "judge": judge.content_hash, "settings": dict(settings), "steps": steps}
    log = open_log(output / "records.jsonl", header)
    runs: dict[str, TrainResult] = {}
    for class_name, seed in SPLITS[split]:
        concept = Concept.of_seed(class_name, seed)
        progress.say(f"{concept.name}: training")
        runs[concept.name] = _train(concept, output / concept.name, settings, progress)
        _judge(base, judge, concept, runs[concept.name], output, log, steps, progress)
    table = concept_table(log.all(), runs, f"Concepts of the {split} split, {len(SPLITS[split])} individuals")
    write_table(table, output, "concepts")
    return table


def _train(concept: Concept, folder: Path, settings: Mapping[str, str], progress: Progress) -> TrainResult:
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for i, photo in enumerate(concept.photos):
        photo.save(photos / f"{i + 1:02d}.png")
    overrides: dict[str, object] = {
        "concept.images": photos,
        "concept.class_noun": concept.class_name,
        "concept.token": TOKEN,
        "run.output_dir": folder / "run",
        **settings,
    }
    return train(load_config(None, overrides), progress=progress)


def _judge(
    base: BaseModel,
    judge: EmbeddedScorer,
    concept: Concept,
    run: TrainResult,
    output: Path,
    log: RecordLog,
    steps: int,
    progress: Progress,
) -> None:
    done = {record["arm"] for record in log.all() if record["concept"] == concept.name}
    if done >= set(ARMS):
        return
    peers = peer_embeddings(base, concept, judge)
    rows = []
    for arm in ARMS:
        progress.say(f"{concept.name}: pictures of '{arm}'")
        routes = (Route(load_adapter(run.adapter_path)),)
        pictures = draw_arm(base, concept, arm, token=TOKEN, routes=routes, steps=steps)
        rows += pictures[::NUM_SEEDS]
        if arm not in done:
            log.append(judge_arm(concept, arm, pictures, peers, judge))
    words = [prompt.filled(concept.class_name, TOKEN) for prompt in concept.prompts]
    contact_sheet(rows, column_labels=words, row_labels=list(ARMS)).save(output / f"{concept.name}.png")


def concept_table(records: list[Record], runs: Mapping[str, TrainResult], title: str) -> Table:
    """One row per individual and one for all: gain in identity, prompt fidelity, the right one of twenty, time."""
    rows = []
    for name in [*runs, "all"]:
        chosen = [record for record in records if name in ("all", record["concept"])]
        found = verdict(chosen)
        cpu = runs[name].cpu_seconds if name in runs else sum(run.cpu_seconds for run in runs.values()) / len(runs)
        rows.append(
            (
                name,
                found.identity_gain,
                found.fidelity["base"],
                found.fidelity["ours"],
                found.right["base"],
                found.right["ours"],
                found.right["truth"],
                "yes" if found.learned else "no",
                round(cpu / 60, 1),
            )
        )
    columns = (
        "individual",
        "identity gain",
        "fidelity base",
        "fidelity ours",
        "right one base",
        "right one ours",
        "right one truth",
        "learned",
        "CPU min",
    )
    notes = (
        "identity gain = (ours - floor) / (ceiling - floor) of the judge's cosine to the photos; bar .6",
        "fidelity: share of the prompt's statements that hold; bar: base - .05. right one: nearest of 20 individuals; bar .6",
        f"8 prompts x {NUM_SEEDS} seeds per individual; 95 % intervals: bootstrap over prompts, Wilson for shares",
        "CPU min: the whole training process, samples and checkpoint scores included",
    )
    return Table(title=title, columns=columns, rows=tuple(rows), notes=notes)
