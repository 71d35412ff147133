"""Plans: every mistake is a sentence that names the entry; files round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.composition.plan import ROLES, CompositionPlan
from studio.composition.plan_files import plan_from_values, plan_text, read_plan, write_plan
from studio.pipelines.errors import ConfigError, MissingFileError

PROMPT = "a cat and a dog left of another cat"


def plan(*entries: dict[str, Any], **values: Any) -> CompositionPlan:
    named = [
        {"adapter": f"folder/{name}.safetensors"} | entry for name, entry in zip(("cat", "dog", "mug"), entries, strict=False)
    ]
    return plan_from_values({"prompt": PROMPT, "entries": named} | values)


BAD = {
    "words not in the prompt": ([{"words": "horse"}], r'entry 1 \(cat\): its words "horse" are not in the prompt'),
    "part of a word": ([{"words": "at"}], r'its words "at" are not in the prompt'),
    "too few occurrences": ([{"words": "cat", "occurrence": 3}], "are not 3 times in the prompt"),
    "same words": (
        [{"words": "cat"}, {"words": "Cat"}],
        r'entry 1 \(cat\) and entry 2 \(dog\) are both for the words "Cat".*occurrence: 2',
    ),
    "nested words": ([{"words": "a dog"}, {"words": "dog"}], r"entry 1 \(cat\) and entry 2 \(dog\) are both for"),
    "outside": (
        [{"region": {"box": [0.5, 0, 1.2, 1]}}],
        r"entry 1 \(cat\): its box \[0.5, 0, 1.2, 1\] reaches outside the canvas",
    ),
    "pixels": ([{"region": {"box": [0, 0, 256, 512]}}], "256 of 512 pixels is 0.5"),
    "empty box": ([{"region": {"box": [0.5, 0, 0.5, 1]}}], r"is empty: it should be \[left, top, right, bottom\]"),
    "three numbers": ([{"region": {"box": [0, 0, 1]}}], r"entry 1 \(folder/cat.safetensors\): region.box must be four numbers"),
    "box and mask": ([{"region": {"box": [0, 0, 1, 1], "mask": "m.png"}}], "a box or a mask, and not both"),
    "neither": ([{"region": {}}], "a box or a mask, and not both"),
    "overlap": (
        [{"region": {"box": [0, 0, 0.6, 1]}}, {"region": {"box": [0.5, 0, 1, 1]}}],
        r"the regions of entry 1 \(cat\) and entry 2 \(dog\) overlap: give both a z",
    ),
    "same z": (
        [{"region": {"box": [0, 0, 0.6, 1], "z": 1}}, {"region": {"box": [0.5, 0, 1, 1], "z": 1}}],
        "overlap: give both a z",
    ),
    "never": ([{"active_from": 0.5, "active_to": 0.5}], "which is never"),
    "strength": ([{"strength": "high"}], "strength must be a number"),
    "NaN strength": ([{"strength": float("nan")}], "strength must be a finite number"),
    "role": ([{"role": "stile"}], "must be one of subject, clothing, style, background, object; did you mean style"),
    "alien key": ([{"weight": 0.5}], "weight is no key here; did you mean strength"),
    "typo": ([{"strenght": 0.5}], "strenght is no key here; did you mean strength"),
    "share": ([{"active_to": 1.5}], "active_to must be at most 1, not 1.5"),
    "hash": ([{"sha256": "abc"}], "sha256 must be a SHA-256 of 64 hex digits"),
    "no table": (["cat"], "entry 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_sentences_that_name_the_entry(name: str):
    entries, sentence = BAD[name]
    values = {"prompt": PROMPT, "entries": [
        {"adapter": f"folder/{word}.safetensors"} | entry if isinstance(entry, dict) else entry
        for word, entry in zip(("cat", "dog"), entries, strict=False)
    ]}  # fmt: skip
    with pytest.raises(ConfigError, match=sentence):
        plan_from_values(values)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        plan({"words": "horse"}, {"active_from": 1.0}, {"region": {"box": [0, 0, 2, 1]}})
    assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "prompt is missing. What to draw"),
        ({"prompt": PROMPT, "entries": [{}]}, "entry 1: adapter is missing. The adapter's file"),
        ({"prompt": ""}, "prompt must be a text that is not empty"),
        ({"prompt": PROMPT, "sampler": "ddim"}, "sampler is no key here; did you mean scheduler"),
        ({"prompt": PROMPT, "seed": -1}, "seed must be at least 0, not -1"),
        ({"prompt": PROMPT, "version": 2}, "version must be at most 1, not 2"),
        ([PROMPT], "A plan is a table"),
    ],
)
def test_mistakes_of_the_plan_itself(values: Any, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        plan_from_values(values)


def test_what_is_allowed():
    both = plan({"words": "cat"}, {"words": "cat", "occurrence": 2})
    assert both.entries[1].occurrence == 2
    plan({"region": {"box": [0, 0, 0.6, 1], "z": 1}}, {"region": {"box": [0.5, 0, 1, 1], "z": 2}})
    plan({"region": {"box": [0, 0, 0.5, 1]}}, {"region": {"box": [0.5, 0, 1, 1]}})
    assert plan(strategy="switch").strategy.name == "switch"
    assert dict(plan(strategy={"name": "switch", "steps_per_turn": 3}).strategy.settings) == {"steps_per_turn": 3}


def test_a_plan_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        plan({}).entries[0].strength = 2.0  # type: ignore[misc]


@pytest.mark.parametrize("name", ["plan.yaml", "plan.json"])
def test_files_round_trip(tmp_path: Path, name: str):
    made = plan(
        {"words": "cat", "strength": 0.8, "role": "subject", "region": {"box": [0, 0, 0.5, 1], "soft_edge": 0.05, "z": 2}},
        {"words": "dog", "name": "no", "active_from": 0.25, "active_to": 0.5, "prompt": "a dog: brown", "negative_prompt": ""},
        {"half": "style"},
        strategy={"name": "merge", "method": "ties", "density": 0.5},
        seed=7,
        num_images=2,
        width=96,
        height=64,
        guidance_scale=3.5,
    )
    write_plan(made, tmp_path / name)
    assert read_plan(tmp_path / name) == made
    text = (tmp_path / name).read_text()
    assert ("occurrence" not in text and "negative_prompt: ''" in text) or name == "plan.json"


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    prompt=texts,
    negative=st.one_of(st.just(""), texts),
    strengths=st.lists(st.floats(-4, 4), max_size=3),
    role=st.sampled_from([*ROLES, None]),
    name=st.one_of(st.none(), texts, st.sampled_from(["yes", "1e3", "~", "null", "#1", "- x", "a: b"])),
    seed=st.integers(0, 2**63 - 1),
    setting=st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts),
)
def test_any_plan_survives_both_formats(prompt, negative, strengths, role, name, seed, setting):
    entries = [{"adapter": "x.safetensors", "strength": strength, "role": role, "name": name} for strength in strengths]
    made = CompositionPlan.model_validate(
        {
            "prompt": prompt,
            "negative_prompt": negative,
            "entries": entries,
            "seed": seed,
            "strategy": {"name": "x", "key": setting},
        }
    )
    assert plan_from_values(yaml.safe_load(plan_text(made))) == made
    assert plan_from_values(json.loads(plan_text(made, as_json=True))) == made


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.yaml", "prompt: a\nprompt: b\n", "the key 'prompt' stands there twice"),
        ("a.json", '{"prompt": "a", "prompt": "b"}', "the key 'prompt' stands there twice"),
        ("a.yaml", "prompt: [a\n", "is not valid YAML"),
        ("a.json", "{", "is not valid JSON"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "is not valid YAML"),
        ("a.yaml", "", "A plan is a table"),
    ],
)
def test_files_that_are_no_plans(tmp_path: Path, name: str, text: str, sentence: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_plan(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(MissingFileError, match=r"There is no plan .*none.yaml"):
        read_plan(tmp_path / "none.yaml")


def test_the_documentation_names_every_key_and_strategy():
    from studio.composition.plan import Entry
    from studio.composition.strategies import STRATEGIES

    text = (Path(__file__).parents[2] / "docs" / "composition.md").read_text()
    settings = {name for kind in STRATEGIES for name in kind.Config.model_fields}
    named = {*Entry.model_fields, *(kind.name for kind in STRATEGIES), *settings}
    assert not [name for name in named if f"`{name}`" not in text]
