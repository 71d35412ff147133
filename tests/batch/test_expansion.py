"""Batch files of every encoding give the same requests; mistakes are told with their place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.batch.expansion import Expanded, expand
from studio.batch.fields import GenerateRequest
from studio.batch.reading import read_batch
from studio.pipelines.errors import ConfigError, MissingFileError


def expanded(folder: Path, name: str, text: str) -> list[Expanded]:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return expand(read_batch(path))


def pictures(folder: Path, name: str, text: str) -> list[GenerateRequest]:
    found = [each.request for each in expanded(folder, name, text)]
    assert all(isinstance(each, GenerateRequest) for each in found)
    return found  # type: ignore[return-value]


SAME = {
    "a.txt": 'a red cat --n blurry --w 96 --h 64 --d 7 --l 4.5 --s 20 --adapter x.safetensors:0.8\n# note\n\n'
    '--prompt "a red cat" --negative_prompt "blurry" --size 96x64 --seed 7 --cfg_scale 4.5 --steps 20 --am 0.8 '
    "--adapter x.safetensors\n",
    "a.csv": "prompt,negative,size,seed,cfg_scale,steps,adapters\n"
    "a red cat,blurry,96x64,7,4.5,20,x.safetensors:0.8\n\na red cat,blurry,96x64,7,4.5,20,x.safetensors:0.8\n",
    "a.jsonl": 2
    * (json.dumps({"prompt": "a red cat", "negative_prompt": "blurry", "width": 96, "height": 64, "seed": 7, "steps": 20,
                   "guidance_scale": 4.5, "adapters": [{"file": "x.safetensors", "strength": 0.8}]}) + "\n"),
    "a.yaml": "defaults: {negative: blurry, size: 96x64, steps: 20, cfg_scale: 4.5, adapter: x.safetensors:0.8}\n"
    "jobs:\n- {prompt: a red cat, seed: 7}\n- {prompt: a red cat <lora:x:0.8>, seed: 7, adapters: []}\n",
}  # fmt: skip


@pytest.mark.parametrize("name", list(SAME))
def test_every_encoding_says_the_same(tmp_path: Path, name: str):
    wanted = GenerateRequest.model_validate(
        {"prompt": "a red cat", "negative_prompt": "blurry", "width": 96, "height": 64, "seed": 7, "steps": 20,
         "guidance_scale": 4.5, "adapters": ["x.safetensors:0.8"]}
    )  # fmt: skip
    assert pictures(tmp_path, name, SAME[name]) == [wanted, wanted]


def test_axes_ranges_zips_and_excludes(tmp_path: Path):
    text = """
jobs:
  - prompt: a cat in the snow
    adapters: [x.safetensors, y.safetensors]
    matrix: {adapters.1.strength: "0-1 [3]", seed: [1-2, 9], replace.snow: [rain, fog]}
    zip: {steps: [10, 20], guidance_scale: [1.0, 4.0]}
    exclude:
      - {seed: [2, 9], steps: 10}
"""
    found = expanded(tmp_path, "a.yaml", text)
    assert len(found) == 3 * 3 * 2 * 2 - 3 * 2 * 2
    assert [each.index for each in found] == list(range(len(found)))
    first, last = found[0].request, found[-1].request
    assert isinstance(first, GenerateRequest) and isinstance(last, GenerateRequest)
    assert (first.prompt, first.seed, first.steps, first.adapters[1].strength) == ("a cat in the rain", 1, 10, 0.0)
    assert (last.prompt, last.seed, last.steps, last.adapters[1].strength) == ("a cat in the fog", 9, 20, 1.0)
    assert {each.axes["adapters.1.strength"] for each in found} == {"0", "0.5", "1"}
    steps = expanded(tmp_path, "b.yaml", "prompt: a\nmatrix: {steps: 10-20 (+5), strength: 0.5-1.0 (+0.25)}")
    assert [each.axes["steps"] for each in steps] == ["10"] * 3 + ["15"] * 3 + ["20"] * 3


def test_wildcards_and_seeds(tmp_path: Path):
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "place.txt").write_text("beach\nmoon\n")
    text = "wildcards_dir: cards\njobs:\n- {prompt: 'a {red|blue} cat on the __place__ [[now, then]]', num_images: 2, seed: 5}\n"
    found = pictures(tmp_path, "a.yaml", text)
    assert len(found) == 16 and [each.seed for each in found[:4]] == [5, 6, 5, 6]
    assert {each.prompt for each in found} >= {"a red cat on the beach now", "a blue cat on the moon then"}
    assert [each.prompt for each in pictures(tmp_path, "b.yaml", "wildcards: off\n" + text)][::2] == [
        "a {red|blue} cat on the __place__ [[now, then]]"
    ]
    one = "wildcards: random\nwildcard_count: 3\nwildcard_seed: 4\n" + text
    assert pictures(tmp_path, "c.yaml", one) == pictures(tmp_path, "c.yaml", one)
    random = "- {prompt: a, seed: random}\n- {prompt: a, seed: -1}\n"
    seeds = [each.seed for each in pictures(tmp_path, "d.yaml", random)]
    assert len(set(seeds)) == 2 and seeds == [each.seed for each in pictures(tmp_path, "d.yaml", random)]


def test_plans_and_trainings(tmp_path: Path):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "two.yaml").write_text(
        "prompt: a ohwx cat and a mug\nentries: [{adapter: a.safetensors}, {adapter: b.safetensors, strength: 0.5}]\nsteps: 5\n"
    )
    text = """
defaults: {steps: 7}
training: {concept.class_noun: dog}
jobs:
  - {plan: plans/two.yaml, num_images: 2, matrix: {entries.1.strength: [0.1, 0.9], strategy.name: [merge, switch]}}
  - {method: dreambooth-lora, concept.images: photos, matrix: {adapter.rank: [4, 8]}}
"""
    found = expanded(tmp_path, "a.yaml", text)
    assert [each.request.kind for each in found] == ["compose"] * 8 + ["train"] * 2
    plan = found[-3].request.values  # type: ignore[union-attr]
    assert plan["entries"][1] == {"adapter": "b.safetensors", "strength": 0.9}
    assert (plan["strategy"]["name"], plan["seed"], plan["num_images"], plan["steps"]) == ("switch", 1, 1, 7)
    assert found[0].plan_dir == tmp_path / "plans"
    training = found[-1].request
    assert training.values == {"concept": {"class_noun": "dog", "images": "photos"}, "adapter": {"rank": 8}}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "a cat\na dog --stepz 3", "line 2: there is no flag --stepz; did you mean --steps"),
        ("a.txt", "a cat --steps many", "line 1: steps should be a number"),
        ("a.txt", "a cat --tiling yes", "the studio does not do"),
        ("a.txt", "--seed 3", "there is no prompt"),
        ("a.csv", "prompt,seed\na cat,1,2", "line 2: 3 cells for 2 fields"),
        ("a.csv", "prompt,stepz\na cat,1", "did you mean 'steps'"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', "line 2 is not valid JSON"),
        ("a.yaml", "jobs: [{prompt: a}\n", "not valid YAML.*line"),
        ("a.yaml", "jobs: [{prompt: a, prompt: b}]", "stands there twice"),
        ("a.yaml", "jobs: []", "at least one request"),
        ("a.yaml", "job: [{prompt: a}]", "prompt is missing|no field 'job'"),
        ("a.yaml", "prompt: a\nmatrix: {seed: 3}", "should be a list"),
        ("a.yaml", "prompt: a\nmatrix: {seed: 5-1 (+1)}", "never arrives"),
        ("a.yaml", "prompt: a\nzip: {seed: [1, 2], steps: [3]}", "one length"),
        ("a.yaml", "prompt: a\nmatrix: {seed: [1]}\nzip: {seed: [1]}", "on two axes"),
        ("a.yaml", "prompt: a\nmatrix: {seed: 1-1000, steps: 1-1000}", "more than the 100,000"),
        ("a.yaml", "prompt: a\nmatrix: {seed: [1]}\nexclude: {steps: 3}", "on no axis"),
        ("a.yaml", "prompt: a\nreplace: {b: c}", "'b' is not in the prompt"),
        ("a.yaml", "prompt: a __b__", "asks for __b__, and no wildcards_dir"),
        ("a.yaml", "prompt: a\nmatrix: {adapters.3.strength: [1.0]}\nadapters: [x]", "there is no '3'"),
        ("a.yaml", "prompt: a\nsteps: 0", "steps: input should be greater"),
        ("a.yaml", "prompt: a\nsize: big", "640x480"),
        ("a.toml", "", "a batch file ends in"),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path: Path, name: str, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        expanded(tmp_path, name, text)


def test_no_file(tmp_path: Path):
    with pytest.raises(MissingFileError):
        read_batch(tmp_path / "none.yaml")
