"""The fixed prompts: the committed list is the seeded one, balanced, and says in words what its facts say."""

from collections import Counter

import numpy as np

from studio.assets import world
from studio.evals.base_prompts import GROUP_SIZES, load_base_prompts, make_base_prompts, scene_of, statements
from studio.evals.labels import choose_for_labels, reading_of_label
from studio.pipelines.scoring import parse_prompt
from studio.pipelines.scoring.checklist import PromptFacts


def test_the_list_is_fixed_and_whole():
    prompts = load_base_prompts()
    assert prompts == make_base_prompts()
    assert Counter(prompt.group for prompt in prompts) == GROUP_SIZES
    assert len({prompt.id for prompt in prompts}) == len({prompt.seed for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert parse_prompt(prompt.prompt) == prompt.facts


def test_groups_are_balanced():
    ones = [prompt.facts for prompt in load_base_prompts() if prompt.group == "one"]
    for count in (
        Counter(facts.objects[0].class_name for facts in ones),
        Counter(facts.objects[0].colour for facts in ones),
        Counter(facts.style for facts in ones),
    ):
        assert max(count.values()) - min(count.values()) <= 1
    assert {facts.objects[0].pattern for facts in ones} == {None, *world.PATTERNS[1:]}


def test_scenes_of_prompts_show_the_prompts():
    rng = np.random.default_rng(0)
    for prompt in load_base_prompts()[::7]:
        if prompt.group not in ("one", "two"):
            continue
        scene = scene_of(prompt.facts, rng)
        assert (scene.background, scene.style) == (prompt.facts.background, prompt.facts.style)
        assert scene.relation == prompt.facts.relation
        for thing, wanted in zip(scene.objects, prompt.facts.objects, strict=True):
            assert (thing.class_name, thing.colour) == (wanted.class_name, wanted.colour)
            assert wanted.pattern in (None, thing.pattern)


def test_a_label_that_says_what_the_prompt_says_holds():
    for prompt in choose_for_labels(load_base_prompts(), 20):
        words = [f"{thing.colour} {thing.pattern or '?'} {thing.class_name}" for thing in prompt.facts.objects]
        label = {"objects": words, "background": prompt.facts.background, "style": prompt.facts.style}
        holds = dict(statements(prompt.facts, reading_of_label(label)))
        assert all(value for name, value in holds.items() if name != "relation")


def test_only_the_surest_object_answers_for_one():
    label = {"objects": ["red plain dog", "red plain cat"], "background": "snow", "style": "flat"}
    facts = PromptFacts(parse_prompt("a red cat").objects)
    assert dict(statements(facts, reading_of_label(label)))["object 1 class"] is False
