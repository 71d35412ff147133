"""`studio eval trainers`: the same concepts through every training method, side by side.

Item by item: train (or take the training from the cache), draw, judge, and append the records. Stopped at any point, the same
command goes on; the tables, the plot, the grids and the page are made from the records at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from studio.evals.records import Record, RecordLog, open_log
from studio.evals.trainers_plan import DEFAULT, Budget, Item, items_of, profile_of
from studio.evals.trainers_progress import Board
from studio.evals.trainers_report import Findings, write_report
from studio.evals.trainers_subjects import Drawing, IndividualSubject, StyleSubject, Subject
from studio.evals.trainers_training import Training, TrainingCache
from studio.pipelines.adapters import Adapter, Route, load_adapter
from studio.pipelines.adapters.roles import CONTENT, STYLE, roles_present, select_roles
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.errors import Interrupted, StudioError
from studio.pipelines.scoring import EmbeddedScorer, embedded_referee
from studio.training.methods import METHODS, method_named
from studio.training.signals import StopRequest, catch_stop_signals

REFERENCE_ARMS = ("base", "truth")
REFERENCE_UNITS = 0.1
TRAINING_SHARE = 0.85
"""Of an item's time, about, that goes into training."""


@dataclass(frozen=True)
class _Workshop:
    """What every item needs."""

    base: BaseModel
    judge: EmbeddedScorer
    budget: Budget
    output: Path
    log: RecordLog
    cache: TrainingCache
    board: Board
    stop: StopRequest


def evaluate_trainers(
    budget: Budget,
    output: Path,
    *,
    methods: Sequence[str] | None = None,
    base: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
) -> Findings:
    """Train, draw and judge all that `budget` asks for, and write the report into `output`.

    Args:
        methods: names; every registered method when not given.
        base: as `load_base` takes it. It has to draw the toy world: the judge knows nothing else.
        settings: of every training, stronger than the budget's.

    Raises:
        Interrupted: a signal asked to stop; everything is saved.
        ConfigError: a method is unknown.
        StudioError: trainings failed; all others are done, and the report is made of them.
    """
    chosen = [method_named(name).name for name in methods] if methods else [method.name for method in METHODS]
    model, judge = load_base(base), embedded_referee("judge")
    all_settings = {**budget.settings, **(settings or {})}
    header = {
        "budget": budget.name,
        "base": model.content_hash,
        "judge": judge.content_hash,
        "settings": all_settings,
        "picture_steps": budget.picture_steps,
        "num_picture_seeds": budget.num_picture_seeds,
    }
    individuals = [IndividualSubject(*which) for which in budget.individuals]
    styles = [StyleSubject(style) for style in budget.styles]
    everyone: tuple[Subject, ...] = (*individuals, *styles)
    subjects = {subject.name: subject for subject in everyone}
    items = list(items_of(budget, chosen, [s.name for s in individuals], [s.name for s in styles]))
    log = open_log(output / "records.jsonl", header)
    done = {str(record["item"]) for record in log.all()}
    open_items = [item for item in items if item.name not in done]
    open_references = [s for s in subjects.values() if f"{s.name}/truth" not in done]
    board = Board(len(open_items) + REFERENCE_UNITS * len(open_references))
    with catch_stop_signals() as stop, board.shown():
        cache = TrainingCache(output.parent / "trained", model, all_settings)
        shop = _Workshop(model, judge, budget, output, log, cache, board, stop)
        for subject in open_references:
            _references(shop, subject)
        failures = [failure for item in open_items if (failure := _try_item(shop, item, subjects[item.subject]))]
    findings = Findings(budget=budget, header=header, records=log.all(), methods=tuple(chosen), subjects=everyone)
    write_report(findings, output)
    if failures:
        raise StudioError(f"{len(failures)} of {len(items)} items failed and are missing in {output}: {'; '.join(failures)}")
    return findings


def _references(shop: _Workshop, subject: Subject) -> None:
    """Floor and ceiling of a subject; the same for all methods."""
    shop.board.begin(f"{subject.name}: without an adapter, and as it truly looks", REFERENCE_UNITS)
    for arm in REFERENCE_ARMS:
        name = f"{subject.name}/{arm}"
        if f"{name}/0" not in shop.log:
            pictures = subject.draw(shop.base, arm, _drawing(shop.budget))
            _keep(shop, subject, name, arm, pictures, {"method": arm, "training_seed": None, "variant": DEFAULT})
        _check(shop.stop)
    shop.board.end()


def _try_item(shop: _Workshop, item: Item, subject: Subject) -> str | None:
    """The item; or, where its training fails, why: one method's trouble is no reason to stop a night's work."""
    try:
        _item(shop, item, subject)
    except Interrupted:
        raise
    except StudioError as error:
        shop.board.say(f"{item.name}: {error}")
        shop.board.end()
        return f"{item.name} ({error})"
    return None


def _item(shop: _Workshop, item: Item, subject: Subject) -> None:
    """Train, draw, judge and record one item."""
    shop.board.begin(item.name, 1.0)
    training = shop.cache.training(item, subject, shop.stop, lambda done, total: shop.board.at(TRAINING_SHARE * done / total))
    _check(shop.stop)
    adapter = _acting_half(load_adapter(training.adapter_path), subject)
    pictures = subject.draw(
        shop.base,
        "ours",
        _drawing(shop.budget, (Route(adapter),), neutral=profile_of(item.method).neutral),
        lambda done, total: shop.board.at(TRAINING_SHARE + (1 - TRAINING_SHARE) * done / total),
    )
    facts: dict[str, object] = {
        "method": item.method,
        "training_seed": item.seed,
        "variant": item.variant.name,
        "rate_factor": item.variant.rate_factor,
        "size": item.variant.size,
    }
    _keep(shop, subject, item.name, "ours", pictures, facts, _training_facts(training, adapter, shop.output))
    shop.board.end()
    _check(shop.stop)


def _drawing(budget: Budget, routes: tuple[Route, ...] = (), *, neutral: bool = False) -> Drawing:
    return Drawing(steps=budget.picture_steps, num_seeds=budget.num_picture_seeds, routes=routes, neutral=neutral)


def _acting_half(adapter: Adapter, subject: Subject) -> Adapter:
    """What should act: of an adapter that was trained with a content and a style half, the one that the subject is about."""
    role = STYLE if subject.kind == "style" else CONTENT
    if adapter.info.role_blocks and role in roles_present(adapter):
        return select_roles(adapter, [role])
    return adapter


def _keep(
    shop: _Workshop,
    subject: Subject,
    name: str,
    arm: str,
    pictures: Sequence[Image.Image],
    facts: Mapping[str, object],
    training: Mapping[str, object] | None = None,
) -> None:
    """Save the pictures, then append their records in one go: an item is in the log as a whole or not at all."""
    folder = shop.output / "pictures" / name
    folder.mkdir(parents=True, exist_ok=True)
    num_seeds = shop.budget.num_picture_seeds
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i // num_seeds}-{i % num_seeds}.png")
    judged = subject.judge(shop.base, shop.judge, arm, pictures)
    rows: list[Record] = [
        {**record, **facts, "id": f"{name}/{i}", "item": name, "kind": subject.kind} for i, record in enumerate(judged)
    ]
    if training is not None:
        rows.append({"id": f"{name}/training", "item": name, "kind": "training", "concept": subject.name, **facts, **training})
    shop.log.append(rows)


def _training_facts(training: Training, adapter: Adapter, output: Path) -> dict[str, object]:
    relative = training.folder.resolve().relative_to(output.resolve().parent)
    return {**training.measured, "type": adapter.info.type, "run": f"../{relative.as_posix()}/run"}


def _check(stop: StopRequest) -> None:
    if stop:
        assert stop.signal_number is not None
        raise Interrupted("stopped; the same command goes on from here", stop.signal_number)
