"""Variants of a sentence: whose words stand where."""

from __future__ import annotations

from dataclasses import replace

import pytest

from studio.composition.scene import Scene, make_scene
from studio.composition.variants import plain_words, prompt_variants
from studio.pipelines.base_model import BaseModel, load_base
from tests.support.scenes import lora, plan_for


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base()


def scene(base: BaseModel, prompt: str, *given: tuple[str | None, str | None], entries: list[dict[str, object]]) -> Scene:
    """Adapters with (trigger, class noun) each; on one layer, for speed."""
    adapters = [
        lora(base, number, targets={"unet": r"mid_block.*attn2\.to_k"}, trigger=trigger)
        for number, (trigger, _) in enumerate(given)
    ]
    adapters = [
        replace(adapter, info=replace(adapter.info, class_noun=noun)) for adapter, (_, noun) in zip(adapters, given, strict=True)
    ]
    return make_scene(plan_for(len(adapters), prompt=prompt, entries=entries), base, adapters)


def spoken(base: BaseModel, prompt: str, tokens: tuple[int, ...]) -> str:
    tokenizer = base.tokenizers[0]
    ids = tokenizer.backend_tokenizer.encode(prompt).ids
    return tokenizer.decode([ids[token] for token in tokens]).strip()


def test_each_variant_has_one_concepts_own_words_and_knows_where_all_are(base: BaseModel):
    made = scene(base, "a ohwx cat and a zwx robot in the snow", ("ohwx cat", "cat"), ("zwx robot", "robot"), entries=[{}, {}])
    variants = prompt_variants(made, made.concepts)
    assert [variant.prompt for variant in variants] == [
        "a cat and a robot in the snow",
        "a ohwx cat and a robot in the snow",
        "a cat and a zwx robot in the snow",
    ]
    assert [variant.concept for variant in variants] == [None, 0, 1]
    said = [[spoken(base, variant.prompt, tokens) for tokens in variant.tokens] for variant in variants]
    assert said == [["cat", "robot"], ["ohwx cat", "robot"], ["cat", "zwx robot"]]


def test_two_of_one_class_are_told_apart_by_place(base: BaseModel):
    made = scene(base, "a ohwx cat and a zwx cat", ("ohwx cat", "cat"), ("zwx cat", "cat"), entries=[{}, {}])
    variants = prompt_variants(made, made.concepts)
    assert variants[0].prompt == "a cat and a cat" and variants[2].prompt == "a cat and a zwx cat"
    assert variants[0].tokens[0] != variants[0].tokens[1]
    assert spoken(base, variants[2].prompt, variants[2].tokens[1]) == "zwx cat"


def test_a_prompt_of_its_own_is_the_variant(base: BaseModel):
    given = (("ohwx cat", "cat"), ("zwx robot", "robot"))
    own = "one robot, one ohwx cat with a hat"
    made = scene(base, "a ohwx cat and a zwx robot", *given, entries=[{"prompt": own}, {"prompt": "zwx robot alone"}])
    variants = prompt_variants(made, made.concepts)
    assert variants[1].prompt == own
    assert [spoken(base, own, tokens) for tokens in variants[1].tokens] == ["ohwx cat", "robot"]
    assert variants[2].tokens[0] == ()


@pytest.mark.parametrize(
    ("trigger", "noun", "words", "plain"),
    [
        ("ohwx cat", "cat", None, "cat"),
        ("ohwx", "cat", "ohwx cat", "cat"),
        ("ohwx cat", "cat", "ohwx cat with a hat", "cat with a hat"),
        (None, None, "red cat", "cat"),
        (None, None, "cat", "cat"),
        (None, "tree", "oak", "tree"),
    ],
)
def test_plain_words(base: BaseModel, trigger: str | None, noun: str | None, words: str | None, plain: str):
    prompt = f"a {words or trigger} in the snow"
    made = scene(base, prompt, (trigger, noun), entries=[{"words": words} if words else {}])
    assert plain_words(made.concepts[0]) == plain
