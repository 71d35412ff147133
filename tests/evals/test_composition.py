"""`studio eval composition`: the same prompts for every way, controls, nothing trained or drawn twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studio.assets.world import BACKGROUNDS, RARE_TOKENS, render
from studio.evals import composition, trainers_training
from studio.evals.composition import evaluate_composition
from studio.evals.composition_drawing import Way, draw_truth, next_of_class, plan_of, true_scene
from studio.evals.composition_judge import Gallery, judge_composition, place_things
from studio.evals.composition_plan import (
    BOXES,
    BUDGETS,
    DIFFERENT,
    FOUR,
    INDIVIDUALS,
    PAIRS,
    SAME,
    STYLE,
    STYLES,
    SWEEP,
    THREE,
    Budget,
    prompts_of,
)
from studio.evals.composition_subjects import ComposedIndividual, ComposedStyle, item_of
from studio.evals.composition_ways import ALONE, BASE, TRUTH, merge_way, swapped, ways_with_boxes, ways_without_boxes
from studio.evals.concept_prompts import PHOTO_BACKGROUNDS
from studio.evals.records import read_log
from studio.evals.trainers_plan import Item
from studio.pipelines.base_model import load_base
from studio.pipelines.errors import ConfigError
from studio.pipelines.scoring import Reading, embedded_referee
from studio.pipelines.scoring.scorer import Detection
from tests.support.tiny_bases import tiny_world_dir

ALL_GROUPS = (*PAIRS, THREE, FOUR)


def test_individuals_are_of_four_classes_and_several_kinds():
    assert Counter(thing.class_name for thing in INDIVIDUALS) == {"cat": 3, "dog": 3, "robot": 3, "mug": 3}
    assert {thing.method for thing in INDIVIDUALS} == {"dreambooth-lora", "diffusekrona", "sara"}
    assert len({thing.settings.get("adapter.rank") for thing in INDIVIDUALS if thing.method == "dreambooth-lora"}) >= 3
    words = [each.token for each in (*INDIVIDUALS, *STYLES)]
    assert len(set(words)) == 15 and set(words) < set(RARE_TOKENS)
    assert len({thing.seed for thing in INDIVIDUALS}) == 12  # a seed decides the looks


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS.keys())
def test_prompts_are_fixed_and_balanced(budget: Budget):
    for group in ALL_GROUPS:
        num = budget.num_prompts if group in PAIRS else budget.num_many
        prompts = prompts_of(group, num)
        assert prompts == prompts_of(group, num + 3)[:num]
        used = Counter(thing.name for prompt in prompts for thing in prompt.things)
        counts = [used[thing.name] for thing in INDIVIDUALS]
        assert max(counts) - min(counts) <= 2
        for prompt in prompts:
            classes = [thing.class_name for thing in prompt.things]
            assert len(prompt.things) == {DIFFERENT: 2, SAME: 2, STYLE: 1, THREE: 3, FOUR: 4}[group]
            assert (len(set(classes)) == len(classes)) if group == DIFFERENT else True
            assert (len(set(classes)) == 1) if group == SAME else True
            assert (prompt.style is not None) == (group == STYLE)
            assert prompt.background in set(BACKGROUNDS) - set(PHOTO_BACKGROUNDS)
    seeds = [prompt.seed + n for group in (*ALL_GROUPS, SWEEP) for prompt in prompts_of(group, 12) for n in range(4)]
    assert len(set(seeds)) == len(seeds)


def test_plans_say_what_belongs_to_whom():
    prompt = prompts_of(SAME, 1)[0]
    first, second = prompt.things
    plan, names = plan_of(prompt, Way(name="x", strategy="regional", boxed=True, strength=0.7), num_seeds=2, steps=3)
    assert names == [first.name, second.name]
    assert plan.prompt == f"a {first.words} to the left of a {second.words} {prompt.place}"
    assert [entry.words for entry in plan.entries] == [first.words, second.words]
    assert [entry.strength for entry in plan.entries] == [0.7, 0.7]
    assert [entry.region.box for entry in plan.entries if entry.region] == list(BOXES[2])
    assert plan.entries[0].prompt is None

    other, names = plan_of(prompt, swapped(Way(name="x")), num_seeds=2, steps=3)
    assert names == [next_of_class(first).name, next_of_class(second).name]
    assert next_of_class(first).words in other.prompt and next_of_class(first) != first

    bare, names = plan_of(prompt, BASE, num_seeds=2, steps=3)
    assert not names and bare.prompt == prompt.plain_text and first.token not in bare.prompt
    control = Way(name="x", strategy="regional", boxed=True, control="no adapters")
    idle, names = plan_of(prompt, control, num_seeds=2, steps=3)
    assert [entry.strength for entry in idle.entries] == [0.0, 0.0] and [entry.occurrence for entry in idle.entries] == [1, 2]
    assert idle.prompt == prompt.plain_text

    styled = prompts_of(STYLE, 1)[0]
    plan, names = plan_of(styled, Way(name="x"), num_seeds=1, steps=3)
    assert plan.entries[-1].role == "style" and names[-1] == f"style-{styled.style.style}"
    assert plan.prompt.endswith(f", {styled.style.words}")


def detection(class_name: str, left: float, *, top: float = 0.3, score: float = 0.9) -> Detection:
    return Detection(
        class_name=class_name,
        score=score,
        box=(left, top, left + 0.3, top + 0.4),
        colour="red",
        colour_score=1.0,
        pattern="plain",
        pattern_score=1.0,
    )


def reading(*found: Detection) -> Reading:
    return Reading(detections=found, background="snow", background_score=1.0, style="flat", style_score=1.0)


def test_things_are_placed_by_class_and_place_alone():
    prompt = prompts_of(DIFFERENT, 1)[0]
    first, second = (thing.class_name for thing in prompt.things)
    placed = place_things(prompt, reading(detection(second, 0.6), detection(first, 0.1)), boxed=False)
    assert [each.found.class_name for each in placed if each.found] == [first, second]
    assert [each.in_place for each in placed] == [True, True]

    reversed_order = place_things(prompt, reading(detection(first, 0.6), detection(second, 0.1)), boxed=False)
    assert all(each.found for each in reversed_order) and not any(each.in_place for each in reversed_order)

    missing = place_things(prompt, reading(detection(first, 0.1), detection("tree", 0.6)), boxed=False)
    assert [each.found is not None for each in missing] == [True, False]
    assert place_things(prompt, reading(detection(first, 0.1, score=0.2)), boxed=False)[0].found is None

    # Of three of a class, those in the boxes count.
    same = replace(prompt, things=(prompt.things[0], prompt.things[0]))
    found = reading(detection(first, 0.1), detection(first, 0.35), detection(first, 0.62))
    in_boxes = place_things(same, found, boxed=True)
    assert [each.in_place for each in in_boxes] == [True, True]
    assert [each.found.box[0] for each in in_boxes if each.found] == [0.1, 0.62]
    assert not place_things(same, reading(detection(first, 0.1, top=0.72)), boxed=True)[0].in_place


def test_the_judge_knows_the_individuals_where_they_truly_are():
    gallery = Gallery(load_base(None), embedded_referee("judge"))
    names, rows = gallery.candidates("cat")
    assert len(names) == len(set(names)) == 20 and names[:3] == ("cat-401", "cat-402", "cat-403")
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(20))
    right, leaked, exchanged = [], [], []
    for group in PAIRS:
        for prompt in prompts_of(group, 2):
            pictures = draw_truth(gallery.base, prompt, 2)
            for record in judge_composition(gallery, prompt, pictures, boxed=True):
                right.append(record["right"])
                leaked += record["leaked"]
            if group == SAME:  # the neighbours' looks on each other: all there, in place, and everyone the other one
                turned = replace(prompt, things=prompt.things[::-1])
                exchanged += judge_composition(gallery, turned, pictures, boxed=True)
    assert np.mean(right) >= 0.8 and np.mean(leaked) <= 0.1
    assert all(record["classes_in_place"] and not record["right"] for record in exchanged)
    assert np.mean([leak for record in exchanged for leak in record["leaked"]]) >= 0.8


def test_true_scenes_have_everyone_in_a_box():
    for group in ALL_GROUPS:
        for prompt in prompts_of(group, 3):
            scene = true_scene(prompt, 0)
            for thing, box in zip(scene.objects, prompt.boxes, strict=True):
                assert box[0] <= thing.box[0] <= thing.box[2] <= box[2] + 1e-3
                assert box[1] <= thing.box[1] <= thing.box[3] <= box[3] + 1e-3
            assert render(scene).shape == (96, 96, 3)


def test_everyone_has_a_word_of_its_own(tmp_path: Path):
    subject = ComposedIndividual(INDIVIDUALS[3])
    subject.write_photos(tmp_path, None)
    assert len(list(tmp_path.glob("*.png"))) == 5
    assert item_of(subject).method == INDIVIDUALS[3].method
    assert item_of(subject).variant.settings["concept.token"] == INDIVIDUALS[3].token
    assert item_of(ComposedStyle(STYLES[0])).variant.settings["concept.token"] == STYLES[0].token


TINY = Budget(
    name="tiny",
    num_prompts=1,
    num_many=1,
    num_seeds=1,
    steps=1,
    num_sweep=1,
    strengths=(0.5, 1.0),
    settings={"schedule.steps": 1, "run.checkpoint_every": 1, "run.sample_every": 0, "data.batch_size": 1},
    num_best=1,
)
SOME = ("switch", "regional")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world_dir(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Path]:
    """The folder of a finished evaluation, trained in this process, with factors that divide the tiny base's channels."""
    output = tmp_path_factory.mktemp("eval") / "composition-tiny"

    def small_item(subject: ComposedIndividual | ComposedStyle) -> Item:
        item = item_of(subject)
        if item.method != "diffusekrona":
            return item
        return replace(item, variant=replace(item.variant, settings={**item.variant.settings, "krona.factors": "4x4"}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers_training, "run_worker", run_here)
        patch.setattr(composition, "item_of", small_item)
        evaluate_composition(TINY, output, strategies=SOME, base=base)
        yield output


def run_here(job, folder, stop, on_step=None) -> None:
    """A training in this process: fifteen would else load everything fifteen times."""
    from studio.evals.trainers_worker import run_job

    run_job(dict(job))


@pytest.mark.slow
def test_everything_is_drawn_by_every_way(finished: Path):
    header, records = read_log(finished / "records.jsonl")
    assert header["budget"] == "tiny"
    ways = {(r["way"], r["group"]) for r in records if r["kind"] in ("picture", "alone", "refused")}
    asked = [*ways_without_boxes(), *ways_with_boxes()]
    drawn = {way.name for way in asked if way.strategy in SOME}
    for group in PAIRS:
        assert {(name, group) for name in (*drawn, BASE.name, ALONE, TRUTH)} <= ways
    assert {(merge_way(strength).name, SWEEP) for strength in TINY.strengths} <= ways
    assert {group for _, group in ways} == {*ALL_GROUPS, SWEEP}
    assert any(name.endswith("adapters swapped") for name, _ in ways)
    costs = [r for r in records if r["kind"] == "cost"]
    assert costs and all(r["flops"] > 1e6 for r in costs)
    pictures = [r for r in records if r["kind"] == "picture" and r["way"] == "switch"]
    assert all(r["passes"] == r["whole_passes"] == 2 for r in pictures)  # one step, with and without the prompt
    for r in pictures:
        with Image.open(finished / "pictures" / "switch" / r["prompt"] / "0.png") as image:
            assert image.size == (64, 64)  # the tiny base draws no larger


@pytest.mark.slow
def test_tables_have_their_controls(finished: Path):
    for name in ("pairs", "pairs-boxes", "three", "four"):
        text = (finished / f"{name}.txt").read_text(encoding="utf-8")
        assert all(row in text for row in (BASE.name, ALONE, TRUTH)), name
    bars = (finished / "bars.txt").read_text(encoding="utf-8")
    assert "falls when adapters are swapped" in bars and "base with class words, four things" in bars
    with Image.open(finished / "grid-same.png") as grid:
        assert grid.height > 4 * 192


@pytest.mark.slow
def test_nothing_is_done_twice(finished: Path, base: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("something was made again")

    before = (finished / "records.jsonl").read_bytes()
    monkeypatch.setattr(trainers_training, "run_worker", refuse)
    for name in ("draw_prompt", "draw_alone", "draw_truth", "count_flops"):
        monkeypatch.setattr(composition, name, refuse)
    found = evaluate_composition(TINY, finished, strategies=SOME, base=base)
    assert (finished / "records.jsonl").read_bytes() == before
    assert len(found.outcomes.records) > 20


@pytest.mark.slow
def test_a_log_that_lost_its_end_is_completed(finished: Path, base: Path, monkeypatch: pytest.MonkeyPatch):
    before = (finished / "records.jsonl").read_text(encoding="utf-8")
    lines = before.splitlines(keepends=True)
    (finished / "records.jsonl").write_text("".join(lines[:-6]) + lines[-6][:20], encoding="utf-8")
    evaluate_composition(TINY, finished, strategies=SOME, base=base)
    steady = ("kind", "way", "group", "prompt", "seed", "right", "things", "flops")

    def facts(text: str) -> list[str]:
        rows = [json.loads(line) for line in text.splitlines()[1:]]
        return sorted(json.dumps({key: row.get(key) for key in steady}) for row in rows)

    assert facts((finished / "records.jsonl").read_text(encoding="utf-8")) == facts(before)


def test_an_unknown_strategy_is_refused_before_anything_is_loaded(tmp_path: Path):
    with pytest.raises(ConfigError, match="Did you mean composite"):
        evaluate_composition(TINY, tmp_path / "out", strategies=["composit"], base=tmp_path / "no base")
    assert not (tmp_path / "out").exists()
