"""From what stands on the pages to requests: pure functions."""

from __future__ import annotations

import pytest

from studio.composition.plan_checks import plan_problems
from studio.pipelines.errors import ConfigError
from studio.training.config import validate
from studio.ui.parts import plan_form, training_form
from studio.ui.parts.adapters import with_words
from studio.ui.parts.training_form import EFFORTS, GOALS, TrainingWishes

CAT, ROBOT = "a" * 64, "b" * 64
ROWS = [
    {"id": CAT, "name": "cat", "trigger": "ohwx cat", "on": True, "strength": 0.8},
    {"id": ROBOT, "name": "robot", "trigger": "zwx robot", "on": True, "strength": 1.0},
    {"id": "c" * 64, "name": "mug", "trigger": "qvk mug", "on": False, "strength": 1.0},
]
PROMPT = "a ohwx cat and a zwx robot, in the snow"


def plan(rows=ROWS, prompt=PROMPT, words=None, canvas=None, uses_regions=True, strategy="regional"):
    canvas = plan_form.canvas_value(rows, None) if canvas is None else canvas
    words = plan_form.words_value(prompt, rows, None) if words is None else words
    return plan_form.plan_of(
        prompt, rows, canvas, words, strategy=strategy, uses_regions=uses_regions, settings={}, seed=7, num_images=2, steps=4
    )


def test_adapters_that_are_on_become_entries_with_boxes_beside_each_other_and_their_trigger_words():
    made = plan()
    assert [entry.adapter for entry in made.entries] == [CAT, ROBOT]
    assert [entry.words for entry in made.entries] == ["ohwx cat", "zwx robot"]
    assert [entry.strength for entry in made.entries] == [0.8, 1.0]
    first, second = (entry.region.box for entry in made.entries)
    assert first[2] <= second[0]
    assert (made.seed, made.num_images, made.steps) == (7, 2, 4)
    assert plan_problems(made) == []


def test_strategies_without_regions_get_none():
    assert all(entry.region is None for entry in plan(uses_regions=False, strategy="switch").entries)


def test_words_bound_by_clicks_are_the_texts_in_the_prompt():
    words = plan_form.words_value(PROMPT, ROWS, None)
    owners = {"1": 0, "4": 0}  # ohwx and a: not beside each other
    with pytest.raises(ConfigError, match="cat do not stand together"):
        plan(words={**words, "owners": owners})
    made = plan(words={**words, "owners": {"7": 1, "8": 1, "9": 1}})
    assert made.entries[1].words is not None and made.entries[1].words in PROMPT
    assert made.entries[0].words is None


def test_the_second_of_equal_words_is_its_second_occurrence():
    prompt = "a cat and a cat"
    words = plan_form.words_value(prompt, ROWS[:1], None)
    made = plan(rows=ROWS[:1], prompt=prompt, words={**words, "owners": {"4": 0}})
    assert (made.entries[0].words, made.entries[0].occurrence) == ("cat", 2)
    assert plan_problems(made) == []


def test_bound_words_stay_bound_while_the_prompt_stays_and_adapters_change():
    before = {**plan_form.words_value(PROMPT, ROWS, None), "owners": {"8": 1}}
    after = plan_form.words_value(PROMPT, ROWS[1:2], before)
    assert after["owners"] == {"8": 0}


def test_canvas_and_table_are_twins():
    canvas = plan_form.canvas_value(ROWS, None)
    table = plan_form.table_of(canvas)
    assert plan_form.canvas_of_table(table, canvas) == canvas
    table[0][1:5] = [0.1, 0.2, 0.5, 0.9]
    assert plan_form.canvas_of_table(table, canvas)["boxes"][0]["box"] == [0.1, 0.2, 0.5, 0.9]
    table[0][1] = None
    assert plan_form.canvas_of_table(table, canvas)["boxes"][0]["box"] is None
    table[0][1:5] = [0.6, 0.2, 0.5, 0.9]
    with pytest.raises(ConfigError, match="box of cat"):
        plan_form.canvas_of_table(table, canvas)


def test_the_active_box_comes_before_the_others_which_keep_their_order():
    boxes = [{"name": name, "box": [0, 0, 1, 1], "z": z} for name, z in (("a", 2), ("b", 0), ("c", 1))]
    front = plan_form.in_front({"boxes": boxes, "active": 1})
    assert [one["z"] for one in front["boxes"]] == [1, 2, 0]
    assert plan_form.in_front({"boxes": [], "active": 0}) == {"boxes": [], "active": 0}


def test_boxes_stay_where_they_were_when_nothing_but_the_strength_changes():
    canvas = plan_form.canvas_value(ROWS, None)
    canvas["boxes"][0]["box"] = [0.0, 0.0, 0.3, 0.3]
    assert plan_form.canvas_value(ROWS, canvas)["boxes"][0]["box"] == [0.0, 0.0, 0.3, 0.3]


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("effort", EFFORTS)
def test_every_goal_and_effort_is_a_training_that_can_be(goal: str, effort: int):
    tables = training_form.settings_of(TrainingWishes(class_noun="dog", token="ohwx", goal=goal))
    tables = training_form.with_effort(tables, effort, 200)
    config = validate({**tables, "concept": {**tables["concept"], "images": "."}})
    assert config.schedule.steps == (None if EFFORTS[effort] == 1.0 else round(200 * EFFORTS[effort]))


def test_further_settings_are_read_as_their_types_and_bad_ones_are_told():
    asked = TrainingWishes(class_noun="dog", more='data.flip = true\n\nrun.sample_prompts = ["a {token}"]\n', steps=7)
    tables = training_form.settings_of(asked)
    assert tables["data"] == {"flip": True} and tables["run"] == {"sample_prompts": ["a {token}"]}
    assert training_form.with_effort(tables, 5, 100)["schedule"] == {"steps": 7}, "a number that was given stands"
    for line in ("flip = true", "nothing.at = all", "data.flip"):
        with pytest.raises(ConfigError, match="is no setting"):
            training_form.settings_of(TrainingWishes(more=line))
    with pytest.raises(ConfigError, match="chosen by the page"):
        training_form.settings_of(TrainingWishes(more="run.output_dir = /etc"))


def test_the_proposed_word_is_one_that_no_adapter_has():
    assert training_form.proposed_token([]) == "ohwx"
    assert training_form.proposed_token(["ohwx cat", "zwx robot"]) == "qvk"


def test_trigger_words_go_into_the_prompt_once():
    assert with_words("", "ohwx cat") == "ohwx cat"
    assert with_words("a photo", "ohwx cat") == "a photo, ohwx cat"
    assert with_words("a photo of a ohwx cat", "ohwx cat") == "a photo of a ohwx cat"
