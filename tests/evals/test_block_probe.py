"""The block probe: a split that is there is found, one that is not there is not, and nothing is drawn twice."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from studio.cli.main import main
from studio.evals import block_probe
from studio.evals.block_probe import probe_blocks
from studio.evals.block_probe_plan import (
    BUDGETS,
    NEUTRAL,
    ProbeBudget,
    ProbeItem,
    pair_items,
    prompt_pairs,
    random_pairs,
    single_items,
)
from studio.evals.block_probe_plot import plot_probe
from studio.evals.block_probe_result import best_of, fold, most_promising, probe_tables
from studio.evals.records import Record, open_log
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import attention_stacks
from studio.pipelines.errors import UserError
from studio.pipelines.scoring import embedded_referee, parse_prompt
from tests.support.tiny_bases import tiny_base

STACKS = ("down", "mid", "up0", "up1", "up2", "up3", "up4")
SMALL = ProbeBudget(num_singles=12, num_choosing=8, num_confirming=12, num_candidates=6, steps=1)


def records_of(items: Iterable[ProbeItem], *, content: str | None, style: str | None, rng: np.random.Generator) -> list[Record]:
    """What a perfect scorer would say of a model in which one stack alone decides the content and one the style.

    With None nothing short of all stacks together decides, and pictures lean by chance.
    """
    records: list[Record] = []
    for item in items:
        record: dict[str, object] = {"id": item.id, "phase": item.phase, "number": item.number, "rest": item.rest}
        record |= {"content_stack": item.content_stack, "style_stack": item.style_stack}
        record |= {"first": item.pair.first.prompt, "second": item.pair.second.prompt}
        for what, decider in (("content", content), ("style", style)):
            told = item.stack_prompts.get(decider, item.rest) if decider is not None else item.rest
            sides = {item.pair.first.prompt: 1.0, item.pair.second.prompt: -1.0, NEUTRAL: 0.0}
            record[f"{what}_lean"] = sides[told] + float(rng.normal(0, 0.3))
        records.append(record)
    return records


def found_in(content: str | None, style: str | None, seed: int = 0, budget: ProbeBudget = SMALL):
    rng = np.random.default_rng(seed)
    records = records_of(single_items(STACKS, budget), content=content, style=style, rng=rng)
    candidates = most_promising(records, STACKS, budget.num_candidates)
    records += records_of(pair_items("choose", candidates, budget), content=content, style=style, rng=rng)
    best = best_of(records, candidates)
    controls = random_pairs(STACKS, best)
    records += records_of(pair_items("confirm", [best, *controls], budget), content=content, style=style, rng=rng)
    return fold(records, STACKS, candidates, best, controls)


def test_a_split_is_found_whichever_stacks_it_is_in():
    for content, style in (("up3", "up4"), ("up4", "mid"), ("down", "up0")):
        result = found_in(content, style)
        assert (result.best.content_stack, result.best.style_stack) == (content, style)
        assert result.separates
        assert result.best.separation.estimate == pytest.approx(1.0, abs=0.3)
        assert result.num_as_good == 0 and len(result.controls) == 20
        by_stack = {effect.stack: effect for effect in result.singles}
        assert by_stack[content].content.low > 0.5 > by_stack[content].style.high
        assert by_stack[style].style.low > 0.5 > by_stack[style].content.high


def test_chance_is_no_separation():
    """The best pair of a model without a split is only the luckiest one: fresh prompts show it."""
    assert sum(found_in(None, None, seed).separates for seed in range(10)) <= 1


def test_one_stack_that_decides_both_is_no_separation():
    assert sum(found_in("up1", "up1", seed).separates for seed in range(3)) == 0


def test_prompts_of_a_pair_share_nothing_and_phases_share_no_pictures():
    seen: set[int] = set()
    for phase in ("single", "choose", "confirm"):
        pairs = prompt_pairs(phase, 40)
        assert prompt_pairs(phase, 10) == pairs[:10]
        for pair in pairs:
            assert pair.first.content != pair.second.content and pair.first.style != pair.second.style
            for words in (pair.first, pair.second):  # the guide can check every word of them
                facts, style = parse_prompt(words.content_words), parse_prompt(words.style).style
                assert [thing.class_name for thing in facts.objects] == [words.content] and style is not None
        assert not seen & {pair.seed for pair in pairs}
        seen |= {pair.seed for pair in pairs}


def test_the_numbers_of_pictures_are_as_announced():
    for budget in (*BUDGETS.values(), SMALL):
        pairs = [("a", "b")] * min(budget.num_candidates, 42)
        items = [*single_items(STACKS, budget), *pair_items("choose", pairs, budget)]
        items += pair_items("confirm", [("up0", "up1"), *random_pairs(STACKS, ("up0", "up1"))], budget)
        assert len(items) == budget.num_pictures(len(STACKS))
    assert len({item.id for item in single_items(STACKS, SMALL)}) == 9 * SMALL.num_singles


def test_random_pairs_are_pairs_and_leave_the_best_out():
    pairs = random_pairs(STACKS, ("up0", "up1"))
    assert len(set(pairs)) == 20 and ("up0", "up1") not in pairs
    assert all(first != second for first, second in pairs)
    assert random_pairs(("a", "b"), ("a", "b")) == [("b", "a")]


def test_tables_plot_and_record_say_the_same(tmp_path: Path):
    result = found_in("up3", "up4")
    singles, pairs = probe_tables(result)
    assert [row[0] for row in singles.rows] == list(STACKS)
    assert [row[0] for row in pairs.rows][:2] == ["best", "random 1"] and len(pairs.rows) == 1 + 20 + SMALL.num_candidates
    record = result.record("ab" * 32)
    assert (record.content_block, record.style_block, record.separates) == ("up3", "up4", True)
    assert "separates content from style" in record.sentence and json.dumps(result.details())
    assert "no separation" in replace(result, num_as_good=5).sentence
    plot_probe(result, tmp_path / "a.png")
    plot_probe(result, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("embedded", tmp_path_factory.mktemp("base"))


def test_a_stopped_probe_goes_on_and_draws_only_what_is_missing(base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All but five pictures of the singles are there; whatever the model draws, the split of the rest is found."""
    guide, stacks = embedded_referee("guide"), attention_stacks(base.unet)
    budget = replace(SMALL, num_choosing=2, num_confirming=2, num_candidates=2)
    drawn: list[int] = []
    generate = block_probe.generate
    monkeypatch.setattr(block_probe, "generate", lambda *a, **k: drawn.append(len(a[1].prompts)) or generate(*a, **k))
    progress: list[tuple[int, int]] = []
    header = {"what": "block probe 1", "base": base.content_hash, "scorer": [guide.name, guide.content_hash]}
    log = open_log(tmp_path / "records.jsonl", {**header, "steps": 1, "neutral": NEUTRAL})
    singles = list(single_items(stacks, budget))
    law = {"content": stacks[0], "style": stacks[1], "rng": np.random.default_rng(0)}
    log.append(records_of(singles[:-5], **law))  # type: ignore[arg-type]
    probe_blocks(base, guide, tmp_path, budget, on_progress=lambda done, total: progress.append((done, total)))
    assert sum(drawn) == 5 + 2 * 2 + 21 * 2
    assert progress[-1] == (51, 51) and len({total for _, total in progress}) == 1
    probe_blocks(base, guide, tmp_path, budget)
    assert sum(drawn) == 51  # nothing again


def test_a_base_that_ignores_prompts_is_a_sentence(base: BaseModel, tmp_path: Path):
    budget = replace(SMALL, num_singles=2)
    with pytest.raises(UserError, match=r"do not follow the content of the prompts"):
        probe_blocks(base, embedded_referee("guide"), tmp_path, budget)


def test_the_guide_does_not_read_other_families(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = tiny_base("sd15", tmp_path / "base").root_dir
    with pytest.raises(SystemExit) as ended:
        main(["probe-blocks", "--base", str(folder), "--output", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "give --scorer a folder with a CLIP model" in capfd.readouterr().err
