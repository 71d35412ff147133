"""`studio eval selma`: hard prompts that are not trained on, claims that follow from intervals, nothing done twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from studio.cli.main import main
from studio.evals import selma
from studio.evals.records import read_log
from studio.evals.selma_plan import BUDGETS, GROUPS, SelmaBudget, hard_prompts
from studio.evals.selma_tables import claims, kind_score, kinds_table, score, scores_table
from studio.pipelines.base_model import load_base
from studio.pipelines.scoring import embedded_referee
from studio.pipelines.scoring.checklist import parse_prompt
from tests.support.tiny_bases import tiny_embedded_dir

ARMS = (selma.BASE, selma.MIXTURE, selma.MERGED)


def test_prompts_say_what_their_groups_are_for():
    prompts = hard_prompts("report", 12)
    assert len(prompts) == 12 * len(GROUPS) and len({prompt.prompt for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert parse_prompt(prompt.prompt) == prompt.facts, prompt.prompt  # the words say just that
        group, things = GROUPS[prompt.group], prompt.facts.objects
        assert len(things) == group.num_objects and sum(thing.pattern is not None for thing in things) == group.num_patterns
        assert (len({thing.class_name for thing in things}) == 1) == (group.same_class or len(things) == 1)
        assert not group.styled or prompt.facts.style != "flat"
    assert not {prompt.prompt for prompt in prompts} & {prompt.prompt for prompt in hard_prompts("tune", 12)}


def record(arm: str, number: int, holds: int) -> dict[str, Any]:
    items = {"object 1 class": holds > 0, "object 1 colour": holds > 1, "style": True, "background": True}
    return {"id": f"{arm}{number}", "arm": arm, "group": "one" if number % 2 else "two", "items": items}


def arms(**holds: int) -> dict[str, list[dict[str, Any]]]:
    names = {"base": selma.BASE, "mixture": selma.MIXTURE, "merged": selma.MERGED}
    return {names[arm]: [record(arm, number, count) for number in range(20)] for arm, count in holds.items()}


def test_claims_need_intervals_beyond_zero():
    better = claims(arms(base=0, mixture=1, merged=2), *_names())
    assert "(holds)" in better[0] and "0.500 [0.500, 0.500]" in better[0] and "are better than one LoRA" in better[1]
    same = claims(arms(base=1, mixture=1, merged=1), *_names())
    assert "does NOT hold" in same[0] and "No difference" in same[1]
    worse = claims(arms(base=2, mixture=2, merged=0), *_names())
    assert "does NOT hold" in worse[0] and "mixture is better" in worse[1]


def _names() -> tuple[str, str, str]:
    return selma.BASE, selma.MERGED, selma.MIXTURE


def test_tables_pair_prompts_and_part_kinds():
    found = arms(base=1, mixture=1, merged=2)
    table = scores_table(found, selma.BASE, selma.MERGED, "note")
    rows = {row[0]: row for row in table.rows}
    assert str(rows[selma.MERGED][3]) == "0.250 [0.250, 0.250]" and rows[selma.BASE][3] is None
    assert table.columns[-2:] == ("two", "one") and rows[selma.MERGED][-1] == 1.0
    by_kind = {row[0]: row for row in kinds_table(found, selma.BASE, selma.MERGED, "note").rows}
    assert str(by_kind["colour"][3]) == "1.000 [1.000, 1.000]" and str(by_kind["style"][3]) == "0.000 [0.000, 0.000]"
    assert score(found[selma.BASE][0]) == 0.75 and kind_score(found[selma.BASE][0], "relation") is None


def test_the_whole_evaluation_and_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = load_base(tiny_embedded_dir(tmp_path / "base"))
    monkeypatch.setattr(selma, "KEEP_FROM", 0.0)  # what a random model draws shows nothing
    train = {"schedule.steps": 1, "data.batch_size": 2, "data.resolution": 32, "adapter.rank": 2, "run.device": "cpu"}
    budget = SelmaBudget(num_each=1, num_prompts=2, attempts=1, steps=1, train=train, unfiltered=True)
    guide, judge = embedded_referee("guide"), embedded_referee("judge")
    tables, sentences = selma.evaluate_selma(base, guide, judge, tmp_path / "out", budget)
    names = [row[0] for row in tables[0].rows]
    assert names == [
        selma.BASE,
        *(f"expert: {skill}" for skill in ("count", "binding", "pattern", "style")),
        selma.MIXTURE,
        selma.MERGED,
        selma.UNFILTERED,
    ]
    assert len(sentences) == 2 and (tmp_path / "out" / "selma.png").is_file()
    header, records = read_log(tmp_path / "out" / "records.jsonl")
    assert header["judge"] == judge.content_hash and len(records) == len(names) * len(GROUPS)
    trained = [line for path in (tmp_path / "out").glob("*/prompts/*.json") for line in path.read_text().splitlines()]
    assert not {f'    "{prompt.prompt}",' for prompt in hard_prompts("report", 60)} & set(trained)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("was there already")

    monkeypatch.setattr(selma, "generate", refuse)
    again, _ = selma.evaluate_selma(base, guide, judge, tmp_path / "out", budget)
    assert again == tables


def test_the_judge_reads_no_other_models_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from tests.support.tiny_bases import tiny_sd15_dir

    with pytest.raises(SystemExit) as stopped:
        main(["eval", "selma", "--base", str(tiny_sd15_dir(tmp_path)), "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2 and "reads the embedded model's pictures only" in capsys.readouterr().err
    assert set(BUDGETS) == {"quick", "full"} and ARMS[0] == selma.BASE
