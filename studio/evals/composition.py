"""`studio eval composition`: every strategy on the same prompts, adapters and seeds, read by the judge.

Item by item: train (or take the training from the cache), draw a prompt in some way, judge, append the records. Stopped at any
point, the same command goes on; tables and grids are made from the records at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from PIL import Image

from studio.composition.strategies import STRATEGIES, strategy_named
from studio.composition.strategy import StrategyKind
from studio.evals.composition_drawing import Cost, Way, count_flops, draw_alone, draw_prompt, draw_truth
from studio.evals.composition_judge import Gallery, judge_alone, judge_composition
from studio.evals.composition_outcomes import Outcomes, best_ways
from studio.evals.composition_plan import (
    DIFFERENT,
    FOUR,
    INDIVIDUALS,
    PAIRS,
    SAME,
    STYLES,
    SWEEP,
    THREE,
    Budget,
    ComposedPrompt,
    prompts_of,
)
from studio.evals.composition_report import Findings, write_report
from studio.evals.composition_subjects import ComposedIndividual, ComposedStyle, item_of
from studio.evals.composition_ways import (
    ALONE,
    BASE,
    BOXES,
    CMLORA,
    COMPOSITE,
    EXTRA_WAYS,
    LORA_COMPOSER,
    TRUTH,
    merge_way,
    parts_off,
    swapped,
    ways_with_boxes,
    ways_without_boxes,
    without_adapters,
)
from studio.evals.records import Record, RecordLog, open_log
from studio.evals.trainers_progress import Board
from studio.evals.trainers_training import Training, TrainingCache
from studio.pipelines.adapters import Adapter, load_adapter
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.errors import Interrupted
from studio.pipelines.scoring import embedded_referee
from studio.training.signals import StopRequest, catch_stop_signals

TRAINING_UNITS = 40.0
"""What a training takes, in pictures."""


@dataclass(eq=False)
class _Workshop:
    """What every item needs, and which records belong to this run's plan."""

    base: BaseModel
    gallery: Gallery
    budget: Budget
    output: Path
    log: RecordLog
    board: Board
    stop: StopRequest
    trainings: dict[str, Training] = field(default_factory=dict)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    used: dict[str, None] = field(default_factory=dict)

    def outcomes(self) -> Outcomes:
        """Of all that was drawn so far."""
        return Outcomes(records=[r for r in self.log.all() if r["id"] in self.used])


def evaluate_composition(
    budget: Budget,
    output: Path,
    *,
    strategies: Sequence[str] | None = None,
    base: str | Path | None = None,
    settings: Mapping[str, object] | None = None,
) -> Findings:
    """Train, draw and judge all that `budget` asks for, and write the report into `output`.

    Args:
        strategies: names; every registered strategy when not given. The plain merge is always there.
        base: as `load_base` takes it. It has to draw the toy world: the judge knows nothing else.
        settings: of every training, stronger than the budget's.

    Raises:
        Interrupted: a signal asked to stop; everything is saved.
        ConfigError: a strategy is unknown.
    """
    kinds = [strategy_named(name) for name in strategies] if strategies else list(STRATEGIES)
    model, judge = load_base(base), embedded_referee("judge")
    header = {
        "what": "composition 1",
        "budget": budget.name,
        "base": model.content_hash,
        "judge": judge.content_hash,
        "steps": budget.steps,
    }
    log = open_log(output / "records.jsonl", header)
    with catch_stop_signals() as stop:
        board = Board(_units(budget, kinds))
        shop = _Workshop(model, Gallery(model, judge), budget, output, log, board, stop)
        with board.shown():
            _train(shop, {**budget.settings, **(settings or {})})
            merge = _references_and_sweep(shop)
            free, boxed = _pairs(shop, kinds, merge)
            many = _many(shop, merge, free, boxed)
    findings = Findings(
        budget=budget,
        header=header,
        outcomes=shop.outcomes(),
        trainings=shop.trainings,
        adapters=shop.adapters,
        merge=merge,
        free=tuple(way.name for way in free),
        boxed=tuple(way.name for way in boxed),
        many=tuple(way.name for way in many),
        parts=tuple(way.name for way in parts_off(kinds)),
    )
    write_report(findings, output)
    return findings


def _train(shop: _Workshop, settings: Mapping[str, object]) -> None:
    cache = TrainingCache(shop.output.parent / "trained", shop.base, settings)
    subjects: list[ComposedIndividual | ComposedStyle] = [*map(ComposedIndividual, INDIVIDUALS), *map(ComposedStyle, STYLES)]
    for subject in subjects:
        shop.board.begin(f"training {subject.name}", TRAINING_UNITS)
        training = cache.training(item_of(subject), subject, shop.stop, lambda done, total: shop.board.at(done / total))
        shop.trainings[subject.name] = training
        shop.adapters[subject.name] = load_adapter(training.adapter_path)
        shop.board.end()
        _check(shop.stop)


def _references_and_sweep(shop: _Workshop) -> Way:
    """Floor and ceilings, and the strength at which the plain merge is best."""
    budget = shop.budget
    for prompt in _all_prompts(budget):
        _reference(shop, prompt, ALONE)
        _reference(shop, prompt, TRUTH)
        _draw(shop, prompt, BASE)
    sweep = [merge_way(strength) for strength in budget.strengths]
    for prompt in prompts_of(SWEEP, budget.num_sweep):
        for way in sweep:
            _draw(shop, prompt, way)
    found = shop.outcomes()
    best = max(sweep, key=lambda way: (found.mean(way.name, groups=[SWEEP]), found.mean(way.name, "things_right", [SWEEP])))
    return best


def _pairs(shop: _Workshop, kinds: Sequence[StrategyKind[Any]], merge: Way) -> tuple[list[Way], list[Way]]:
    """All ways on pairs, and the controls of the best ones: the ways without boxes, and those with."""
    free = [merge, *ways_without_boxes(kinds), *(EXTRA_WAYS if shop.budget.with_rules else ())]
    boxed = ways_with_boxes(kinds)
    pairs = [prompt for group in PAIRS for prompt in prompts_of(group, shop.budget.num_prompts)]
    for prompt in pairs:
        for way in (*free, *boxed):
            _draw(shop, prompt, way)
    for way in (*free, *boxed):
        _count(shop, prompts_of(DIFFERENT, 1)[0], way)
    for group in (DIFFERENT, SAME):
        for number, prompt in enumerate(prompts_of(group, shop.budget.num_prompts)):
            controls = [without_adapters(way) for way in boxed if way.strategy == LORA_COMPOSER]
            for way in (*controls, *(parts_off(kinds) if number < shop.budget.num_parts else ())):
                _draw(shop, prompt, way)
    found = shop.outcomes()
    for ways in (free, boxed):
        for best in best_ways(found, [way.name for way in ways], 1):
            control = swapped(next(way for way in ways if way.name == best))
            for prompt in pairs:
                _draw(shop, prompt, control)
    return free, boxed


def _many(shop: _Workshop, merge: Way, free: Sequence[Way], boxed: Sequence[Way]) -> list[Way]:
    """The best ways at three and four things, with the plain merge and what the bars are about."""
    everything = {way.name: way for way in (*free, *boxed)}
    best = best_ways(shop.outcomes(), [name for name in everything if name != merge.name], shop.budget.num_best)
    asked = [merge.name, *best, COMPOSITE, CMLORA, LORA_COMPOSER + BOXES]
    ways = [everything[name] for name in dict.fromkeys(asked) if name in everything]
    controls = [without_adapters(way) for way in ways if way.boxed and way.strategy == LORA_COMPOSER]
    for group in (THREE, FOUR):
        prompts = prompts_of(group, shop.budget.num_many)
        for prompt in prompts:
            for way in (*ways, *controls):
                _draw(shop, prompt, way)
        for way in ways:
            _count(shop, prompts[0], way)
    return [*ways, *controls]


def _all_prompts(budget: Budget) -> list[ComposedPrompt]:
    pairs = [prompt for group in PAIRS for prompt in prompts_of(group, budget.num_prompts)]
    return [*pairs, *(prompt for group in (THREE, FOUR) for prompt in prompts_of(group, budget.num_many))]


def _units(budget: Budget, kinds: Sequence[StrategyKind[Any]]) -> float:
    """About how many pictures the whole evaluation is."""
    pairs = len(PAIRS) * budget.num_prompts
    ways = len(ways_without_boxes(kinds)) + len(ways_with_boxes(kinds)) + (len(EXTRA_WAYS) if budget.with_rules else 0) + 4
    parts = 2 * budget.num_parts * len(parts_off(kinds))
    many = 2 * budget.num_many * (budget.num_best + 5)
    pictures = (pairs * (ways + 3) + parts + many + budget.num_sweep * len(budget.strengths)) * budget.num_seeds
    return pictures + TRAINING_UNITS * (len(INDIVIDUALS) + len(STYLES))


def _draw(shop: _Workshop, prompt: ComposedPrompt, way: Way) -> None:
    """Draw, judge and record a prompt in some way, unless it is in the log."""
    budget = shop.budget
    key = _key(shop, prompt, way.facts())
    name = f"{way.name}/{prompt.id}"
    ids = [f"{name}/{seed}/{key}" for seed in range(budget.num_seeds)]
    refusal = f"{name}/refused/{key}"
    shop.board.begin(name, budget.num_seeds)
    if ids[0] not in shop.log and refusal not in shop.log:
        drawn = draw_prompt(shop.base, prompt, way, shop.adapters, num_seeds=budget.num_seeds, steps=budget.steps)
        facts = _facts(prompt, way.name, "refused" if drawn.refused else "picture")
        if drawn.refused:
            shop.log.append([{**facts, "id": refusal, "num": budget.num_seeds, "why": drawn.refused}])
        else:
            assert drawn.cost is not None
            judged = judge_composition(shop.gallery, prompt, drawn.pictures, boxed=way.boxed)
            _keep(shop, name, drawn.pictures, ids, judged, {**facts, **_each(drawn.cost, budget.num_seeds)})
    shop.used |= dict.fromkeys([*ids, refusal])
    shop.board.end()
    _check(shop.stop)


def _reference(shop: _Workshop, prompt: ComposedPrompt, what: str) -> None:
    """The rendered truth, or the things each alone."""
    budget = shop.budget
    key = _key(shop, prompt, {"what": what} if what == ALONE else {"what": what, "adapters": False})
    name = f"{what}/{prompt.id}"
    ids = [f"{name}/{seed}/{key}" for seed in range(budget.num_seeds)]
    shop.board.begin(name, budget.num_seeds)
    if ids[0] not in shop.log:
        if what == TRUTH:
            pictures: Sequence[Image.Image] = draw_truth(shop.base, prompt, budget.num_seeds)
            judged = judge_composition(shop.gallery, prompt, pictures, boxed=True)
            _keep(shop, name, pictures, ids, judged, _facts(prompt, what, "picture"))
        else:
            drawn = draw_alone(shop.base, prompt, shop.adapters, num_seeds=budget.num_seeds, steps=budget.steps)
            judged = judge_alone(shop.gallery, prompt, [part.pictures for part in drawn])
            cost = reduce(Cost.plus, (part.cost for part in drawn if part.cost is not None))
            facts = {**_facts(prompt, what, "alone"), **_each(cost, budget.num_seeds * len(drawn))}
            for number, part in enumerate(drawn):
                _save(shop, f"{name}/{number}", part.pictures)
            shop.log.append({"id": ids[seed], "seed": seed, **facts, **each} for seed, each in enumerate(judged))
    shop.used |= dict.fromkeys(ids)
    shop.board.end()
    _check(shop.stop)


def _count(shop: _Workshop, prompt: ComposedPrompt, way: Way) -> None:
    """FLOPs of one picture."""
    name = f"cost/{way.name}/{prompt.count}/{_key(shop, prompt, way.facts())}"
    if name not in shop.log:
        flops = count_flops(shop.base, prompt, way, shop.adapters, steps=shop.budget.steps)
        shop.log.append([{"id": name, "kind": "cost", "way": way.name, "count": prompt.count, "flops": flops}])
    shop.used[name] = None
    _check(shop.stop)


def _facts(prompt: ComposedPrompt, way: str, kind: str) -> dict[str, object]:
    return {"kind": kind, "way": way, "group": prompt.group, "prompt": prompt.id, "text": prompt.text}


def _each(cost: Cost, num: int) -> dict[str, object]:
    """What one of `num` pictures cost."""
    return {name: round(value / num, 4) for name, value in asdict(cost).items()}


def _keep(
    shop: _Workshop,
    name: str,
    pictures: Sequence[Image.Image],
    ids: Sequence[str],
    judged: Sequence[Record],
    facts: Record,
) -> None:
    """Save the pictures, then append their records in one go: a prompt is in the log as a whole or not at all."""
    _save(shop, name, pictures)
    shop.log.append({"id": ids[seed], "seed": seed, **facts, **each} for seed, each in enumerate(judged))


def _save(shop: _Workshop, name: str, pictures: Iterable[Image.Image]) -> None:
    folder = shop.output / "pictures" / name
    folder.mkdir(parents=True, exist_ok=True)
    for seed, picture in enumerate(pictures):
        picture.save(folder / f"{seed}.png")


def _key(shop: _Workshop, prompt: ComposedPrompt, facts: Mapping[str, Any]) -> str:
    """Hash of all that decides the pictures of a prompt, besides what is in the log's header."""
    names = [thing.name for thing in INDIVIDUALS] if facts.get("control") == "swapped" else [t.name for t in prompt.things]
    names += [prompt.style.name] if prompt.style is not None else []
    needed = facts.get("adapters", True) and facts.get("control") != "no adapters"
    hashes = [shop.adapters[name].content_hash() for name in names] if needed else []
    whole = [prompt.text, prompt.seed, prompt.boxes, shop.budget.num_seeds, hashes, {**facts}]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=dict).encode()).hexdigest()[:10]


def _check(stop: StopRequest) -> None:
    if stop:
        assert stop.signal_number is not None
        raise Interrupted("stopped; the same command goes on from here", stop.signal_number)
