"""`studio selma`: different prompts, pictures drawn once, one expert a skill, and a merge whose weights sum to one."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from studio.cli.main import main
from studio.composition.plan_files import read_plan
from studio.pipelines.adapters import load_adapter, merged_parameters, save_adapter
from studio.pipelines.adapters.patching import module_at
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.errors import ConfigError, MissingFileError, UserError
from studio.pipelines.scoring import embedded_referee
from studio.training.progress import Silence
from studio.workflows import selma_pictures
from studio.workflows.selma import SelmaSettings, run_selma, write_merged
from studio.workflows.selma_pictures import Drawing, PictureStore
from studio.workflows.selma_prompts import skill_prompts
from studio.workflows.selma_skills import SkillSet, builtin_skills, fill_template, read_skills, skills_from_values
from studio.workflows.selma_text import PromptPool, lcs_length, rouge_l, words_of
from tests.support.scenes import kronecker, lora
from tests.support.tiny_bases import tiny_embedded_dir

SKILLS = skills_from_values(
    {
        "words": {"noun": ["cat", "dog", "mug", "house"], "colour": ["red", "blue", "orange"]},
        "skills": [
            {"name": "pair", "templates": ["a {colour} {noun} and a {colour} {noun}"]},
            {"name": "many", "prompts": ["three red cats at night", "two blue dogs in the snow", "four mugs"]},
        ],
    },
    "test",
)
QUICK = {"schedule.steps": 2, "data.batch_size": 2, "data.resolution": 32, "adapter.rank": 2, "run.device": "cpu"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(tiny_embedded_dir(tmp_path_factory.mktemp("base")))


def naive_lcs(first: list[str], second: list[str]) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, left in enumerate(first):
        for j, right in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


texts = st.lists(st.sampled_from("abcd"), max_size=9)


@settings(max_examples=60, deadline=None)
@given(texts, texts)
def test_the_longest_common_subsequence_is_the_tables(first: list[str], second: list[str]):
    assert lcs_length(first, second) == naive_lcs(first, second)


def test_rouge_l_is_lins_f_measure():
    # Lin 2004: "police killed the gunman" against "police kill the gunman": LCS 3 of 4 words each.
    assert rouge_l("police killed the gunman", "Police kill the GUNMAN!") == pytest.approx(0.75)
    assert rouge_l("a b c d", "a c") == pytest.approx(2 * 2 / 6)
    assert rouge_l("", "a") == 0.0


def test_a_pool_takes_no_near_copies():
    pool = PromptPool(0.8, never=["A secret prompt."])
    assert pool.take("a red cat in the snow") and not pool.take("A red cat in the snow!")
    assert not pool.take("a red cat on the snow")  # 5 of 6 words: .83
    assert pool.take("a red dog on the snow")  # 4 of 6: .67
    assert not pool.take("a secret prompt") and not pool.take("...")
    assert len(pool) == 2


def test_templates_name_no_word_twice_and_say_an():
    rng = random.Random(0)
    filled = [fill_template("a {colour} {noun:x} and a {colour} {noun:x}", SKILLS.words, rng) for _ in range(40)]
    for text in filled:
        first, _, second = text.partition(" and ")
        assert first.split()[-1] == second.split()[-1] and first.split()[1] != second.split()[1]
        assert "a orange" not in text
    assert any("an orange" in text for text in filled)


def test_the_toy_worlds_skills_cover_what_is_hard_for_the_base():
    skills = builtin_skills()
    assert [skill.name for skill in skills.skills] == ["count", "binding", "pattern", "style"]
    from studio.pipelines.scoring.checklist import parse_prompt

    rng = random.Random(1)
    counts: dict[str, set[int]] = {}
    for skill in skills.skills:
        for template in skill.templates:
            facts = parse_prompt(fill_template(template, skills.words, rng))
            counts.setdefault(skill.name, set()).add(len(facts.objects))
            assert facts.objects and all(thing.colour for thing in facts.objects)
    assert counts["count"] == {2, 3, 4} and counts["binding"] == {2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("skills: []", "at least 1"),
        ("skills: [{name: a}]", "has no templates"),
        ("skills: [{name: a, templates: ['a {thing}']}]", r"placeholder \{thing\}"),
        ("skills: [{name: a, prompts: [x]}, {name: a, prompts: [y]}]", "two skills are called 'a'"),
        ("skills: [{name: ../a, prompts: [x]}]", "letters, digits"),
        ("skills: [{name: a, prompt: [x]}]", "no key that is known"),
        ("skills: [{name: a, prompts_file: ../../etc/passwd}]", "not beside"),
        ("- a", "holds no skills"),
        ("a: [", "not valid YAML"),
    ],
)
def test_wrong_skills_are_told(tmp_path: Path, text: str, says: str):
    (tmp_path / "skills.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        read_skills(tmp_path / "skills.yaml")


def test_prompts_come_from_files_and_are_kept(tmp_path: Path):
    (tmp_path / "p.txt").write_text("# mine\none red cat\n\n two  dogs \n", encoding="utf-8")
    (tmp_path / "s.yaml").write_text("skills: [{name: a, prompts_file: p.txt}]", encoding="utf-8")
    skills = read_skills(tmp_path / "s.yaml")
    make: Callable[[], list[str]] = lambda: skill_prompts(  # noqa: E731
        skills, skills.skills[0], tmp_path / "out", num=2, most_alike=0.8, max_words=30, seed=0
    )
    assert make() == ["one red cat", "two dogs"]
    kept = json.loads((tmp_path / "out" / "a.json").read_text(encoding="utf-8"))
    kept["prompts"][1] = "two blue dogs"
    (tmp_path / "out" / "a.json").write_text(json.dumps(kept), encoding="utf-8")
    assert make() == ["one red cat", "two blue dogs"]  # somebody's own correction stays
    (tmp_path / "out" / "a.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="damaged"):
        make()


def test_templates_end_where_nothing_new_comes(tmp_path: Path):
    said: list[str] = []
    found = skill_prompts(
        SKILLS, SKILLS.skills[0], tmp_path, num=10_000, most_alike=0.8, max_words=30, seed=0, never=[], say=said.append
    )
    assert 10 < len(found) < 200 and "that differ enough" in said[0]
    assert all(rouge_l(one, other) <= 0.8 for index, one in enumerate(found) for other in found[:index])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The prompts of every call of `generate`; the pictures are real."""
    calls: list[tuple[str, ...]] = []
    real = selma_pictures.generate

    def generate(base: BaseModel, request: object, *arguments: object, **options: object) -> list[Image.Image]:
        calls.append(request.prompts)  # type: ignore[attr-defined]
        return real(base, request, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(selma_pictures, "generate", generate)
    return calls


def test_pictures_are_drawn_once_and_the_folder_holds_only_them(base: BaseModel, tmp_path: Path, drawn: list[tuple[str, ...]]):
    prompts = ["a red cat", "a blue dog", "two mugs"]
    drawing = Drawing(steps=1, batch_size=2)
    first = PictureStore(base, drawing, None, tmp_path).pictures_of("s", prompts, lambda text: None)
    assert drawn == [("a red cat", "a blue dog"), ("two mugs",)] and first.num_drawn == 3
    assert sorted(path.read_text().strip() for path in first.folder.glob("*.txt")) == sorted(prompts)
    again = PictureStore(base, drawing, None, tmp_path).pictures_of("s", [*prompts[:2], "a star"], lambda text: None)
    assert drawn[2:] == [("a star",)]
    assert sorted(path.read_text().strip() for path in again.folder.glob("*.txt")) == sorted([*prompts[:2], "a star"])
    PictureStore(base, Drawing(steps=2, batch_size=4), None, tmp_path).pictures_of("s", prompts, lambda text: None)
    assert drawn[3:] == [tuple(prompts)]  # another way of drawing


def test_a_scorer_decides_what_is_kept_and_how_often_is_tried(base: BaseModel, tmp_path: Path, drawn: list[tuple[str, ...]]):
    prompts = ["a red cat in the snow, pixel art", "a blue dog at night, watercolour"]
    guide = embedded_referee("guide")
    strict = Drawing(steps=1, attempts=3, keep_from=1.0)
    with pytest.raises(UserError, match="score of 1.0 or more"):  # noise shows nothing
        PictureStore(base, strict, guide, tmp_path / "strict").pictures_of("s", prompts, lambda text: None)
    assert len(drawn) == 3
    lenient = Drawing(steps=1, attempts=3, keep_from=0.0)
    kept = PictureStore(base, lenient, guide, tmp_path / "lenient").pictures_of("s", prompts, lambda text: None)
    assert len(drawn) == 4 and len(kept.prompts) == 2


def test_k_equal_experts_are_the_expert_and_weights_sum_to_one(base: BaseModel, tmp_path: Path):
    expert = lora(base, 1)
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path in paths:
        save_adapter(expert, path, dtype=torch.float32, family=base.family)
    merged = write_merged(base, paths, tmp_path / "merged.safetensors")
    ours, theirs = (merged_parameters(base.components(), each) for each in (merged, expert))
    for path, values in theirs.items():
        torch.testing.assert_close(ours[path], values, rtol=1e-5, atol=1e-6)
    save_adapter(kronecker(base, 2), paths[0], "lycoris", dtype=torch.float32, family=base.family)
    mixed = merged_parameters(base.components(), write_merged(base, paths[:2], tmp_path / "mixed.safetensors"))
    both = [merged_parameters(base.components(), load_adapter(path)) for path in paths[:2]]
    for path, values in mixed.items():
        weight = module_at(base.components()[path.component], path, "merged").get_parameter(path.parameter)
        parts = [each.get(path, weight) for each in both]
        torch.testing.assert_close(values, (parts[0] + parts[1]) / 2, rtol=1e-4, atol=1e-5)


def test_the_whole_way_and_nothing_twice(base: BaseModel, tmp_path: Path, drawn: list[tuple[str, ...]]):
    wanted = SelmaSettings(num_prompts=3, drawing=Drawing(steps=1), train=QUICK, mixture=True)
    made = run_selma(base, SKILLS, tmp_path, wanted, progress=Silence())
    assert list(made.experts) == ["pair", "many"] and made.mixture is not None
    for name, path in made.experts.items():
        info = load_adapter(path).info
        assert (info.name, info.trigger, info.class_noun) == (name, None, None)
    plan = read_plan(made.plan)
    assert plan.strategy.name == "selma" and [entry.name for entry in plan.entries] == ["pair", "many"]
    captions = {path.read_text().strip() for path in (tmp_path / "pictures" / "many").glob("*.txt")}
    assert captions == set(SKILLS.skills[1].prompts)  # no trigger word was put in
    assert len(list((tmp_path / "pictures" / "mixture").glob("*.png"))) == 6
    before = {path: path.read_bytes() for path in (made.merged, *made.experts.values())}
    calls = len(drawn)
    shutil.rmtree(tmp_path / "experts")
    again = run_selma(base, SKILLS, tmp_path, wanted, progress=Silence())
    assert len(drawn) == calls and {path: path.read_bytes() for path in (again.merged, *again.experts.values())} == before


def test_the_command(base: BaseModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "c.txt").write_text("three red cats\ntwo blue dogs at night\n", encoding="utf-8")
    command = ["selma", "--base", str(base.root_dir), "--prompts", f"count={tmp_path / 'c.txt'}", "-n", "2", "--steps", "1"]
    command += [part for key, value in QUICK.items() for part in ("--set", f"{key}={value}")]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "-o", str(tmp_path / "out")])
    assert stopped.value.code == 0
    assert str(tmp_path / "out" / "merged.safetensors") in capsys.readouterr().out
    assert load_adapter(tmp_path / "out" / "merged.safetensors").info.trigger is None
    with pytest.raises(SystemExit) as stopped:
        main(["selma", "--prompts", "count", "-o", str(tmp_path / "out")])
    assert stopped.value.code == 2 and "SKILL=FILE" in capsys.readouterr().err
    with pytest.raises(MissingFileError):
        read_skills(tmp_path / "none.yaml")


def test_words_are_parted_by_everything_else():
    assert words_of("A red-ish cat, 2 dogs!") == ["a", "red", "ish", "cat", "2", "dogs"]
    assert isinstance(SKILLS, SkillSet)
