"""Prompts as statements: every caption of the world is read right, and statements hold for readings that show them."""

from itertools import permutations

import numpy as np
import pytest

from studio.assets import world
from studio.pipelines.scoring import Detection, Reading, check, parse_prompt
from studio.pipelines.scoring.checklist import ObjectFacts, PromptFacts, match_objects, relation_holds


def thing(name, colour="red", pattern="plain", box=(0.1, 0.1, 0.4, 0.4), score=0.9):
    return Detection(class_name=name, score=score, box=box, colour=colour, colour_score=1, pattern=pattern, pattern_score=1)


def reading(*things, background="snow", style="flat"):
    return Reading(detections=things, background=background, background_score=1, style=style, style_score=1)


@pytest.mark.parametrize(
    ("prompt", "facts"),
    [
        ("a red cat", PromptFacts((ObjectFacts("cat", "red"),))),
        ("a photo of a sks robot on the beach", PromptFacts((ObjectFacts("robot"),), background="beach")),
        ("a pencil sketch of an orange striped mug", PromptFacts((ObjectFacts("mug", "orange", "striped"),), style="sketch")),
        ("two blue fish in the sea", PromptFacts((ObjectFacts("fish", "blue"),) * 2, background="sea")),
        (
            "A red star under the stars, beneath a boat",
            PromptFacts((ObjectFacts("star", "red"), ObjectFacts("boat")), "below", background="night"),
        ),
        (
            "a spotted dog to the left of a white house",
            PromptFacts((ObjectFacts("dog", None, "dotted"), ObjectFacts("house", "white")), "left of"),
        ),
        ("a photo of ohwx backpack", PromptFacts()),
        ("a cat on a white background", PromptFacts((ObjectFacts("cat"),), background="white")),
        ("", PromptFacts()),
    ],
)
def test_prompts(prompt, facts):
    assert parse_prompt(prompt) == facts


def test_captions_are_read_as_the_scenes_they_came_from():
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = world.random_scene(rng)
        facts = parse_prompt(world.caption(scene, rng))
        assert facts.background in (None, scene.background)
        assert facts.style in (None, scene.style)
        assert sorted(item.class_name for item in facts.objects) == sorted(item.class_name for item in scene.objects)
        for said in facts.objects:
            assert any(
                said.class_name == item.class_name and said.colour in (None, item.colour) and said.pattern in (None, item.pattern)
                for item in scene.objects
            )


def test_all_hold_and_none_hold():
    facts = parse_prompt("a red striped cat left of a blue dog in the snow, pixel art")
    shown = reading(thing("dog", "blue", box=(0.6, 0.1, 0.9, 0.4)), thing("cat", "red", "striped"), style="pixel")
    assert all(holds for _, holds in check(facts, shown))
    assert len(check(facts, shown)) == 8
    assert not any(holds for _, holds in check(facts, reading(background="sea")))


def test_what_is_not_there_has_no_colour_and_no_relation():
    items = dict(check(parse_prompt("a red cat left of a red dog"), reading(thing("cat"))))
    assert items == {
        "object 1 class": True,
        "object 1 colour": True,
        "object 2 class": False,
        "object 2 colour": False,
        "relation": False,
    }


def test_weak_detections_do_not_count():
    assert dict(check(parse_prompt("a cat"), reading(thing("cat", score=0.1)))) == {"object 1 class": False}


def test_two_of_a_class_are_matched_by_their_colours():
    wanted = parse_prompt("a blue cat left of a red cat").objects
    first, second = thing("cat", "red", score=0.9), thing("cat", "blue", score=0.5)
    assert match_objects(wanted, [first, second]) == [second, first]


def test_one_detection_serves_one_object():
    wanted = (ObjectFacts("cat", "red"), ObjectFacts("cat", "red"))
    assert sorted(map(bool, match_objects(wanted, [thing("cat")]))) == [False, True]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_matching_does_not_depend_on_the_order(order):
    things = [thing("cat", "red"), thing("dog", "blue"), thing("cat", "blue")]
    wanted = (ObjectFacts("cat", "blue"), ObjectFacts("dog"), ObjectFacts("cat", "red"))
    assert match_objects(wanted, [things[index] for index in order]) == [things[2], things[1], things[0]]


@pytest.mark.parametrize(("relation", "opposite"), [("left of", "right of"), ("above", "below")])
def test_relations_have_opposites(relation, opposite):
    near, far = thing("cat"), thing("dog", box=(0.6, 0.6, 0.9, 0.9))
    assert relation_holds(relation, near, far)
    assert relation_holds(opposite, far, near)
    assert not relation_holds(relation, far, near)
    assert not relation_holds(relation, near, near)
