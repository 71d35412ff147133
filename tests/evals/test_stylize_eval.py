"""`studio eval stylize`: held-out pictures, equal terms for every way, nothing trained or drawn twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from studio.cli.main import main
from studio.evals import stylize
from studio.evals.records import read_log
from studio.evals.statistics import Interval
from studio.evals.stylize import evaluate_stylize, stylize_table
from studio.evals.stylize_plan import (
    BUDGETS,
    MERGE,
    PROBED,
    STYLES,
    WORDS,
    StylizeBudget,
    content_pictures,
    style_pictures,
    ways,
)
from studio.pipelines.scoring import embedded_referee
from tests.support.tiny_bases import tiny_base

STACKS = ("mid", "up0", "up1")
TINY = StylizeBudget(num_contents=1, num_styles=1, num_random=0, num_seeds=2, train_steps=2, steps=1)


def test_content_pictures_share_neither_thing_nor_style_with_style_pictures():
    for budget in BUDGETS.values():
        contents, styles = content_pictures(budget.num_contents), style_pictures(budget.num_styles)
        assert {picture.scene.style for picture in contents} == {"flat"}
        assert sorted({picture.scene.style for picture in styles}) == sorted(STYLES)
        assert not {picture.class_name for picture in contents} & {picture.class_name for picture in styles}
        assert len({picture.name for picture in (*contents, *styles)}) == len(contents) + len(styles)
        assert all(len(picture.scene.objects) == 1 for picture in (*contents, *styles))
        assert {picture.token for picture in contents}.isdisjoint(picture.token for picture in styles)


def test_all_ways_learn_from_the_same_words():
    plan = {way.name: way for way in ways(STACKS, ("up0", "up1"), BUDGETS["full"], batch_size=2)}
    assert list(plan) == [PROBED, MERGE, "random blocks 1", "random blocks 2", "random blocks 3", WORDS]
    assert plan[PROBED].blocks == ("up0", "up1")
    assert ("up0", "up1") not in {way.blocks for name, way in plan.items() if name.startswith("random")}
    merge = plan[MERGE].settings
    assert merge["concept.caption_templates"] == ("a {token}",) and merge["loss.prior"] == "none"
    assert merge["data.batch_size"] == 2 and plan[MERGE].method == "dreambooth-lora" and plan[MERGE].blocks is None


def test_tables_count_what_the_judge_saw():
    plan = ways(STACKS, ("up0", "up1"), TINY, batch_size=1)
    records = [
        {"way": way, "pair": f"p{pair}", "seed": seed, "content": True, "style": both, "both": both, "leaked": False}
        for way, share in ((PROBED, 3), (MERGE, 1), (WORDS, 4))
        for pair in range(3)
        for seed in range(4)
        for both in (seed < share,)
    ]
    table = stylize_table(records, plan, no_separation=True)
    rows = {row[0]: row for row in table.rows}
    both, difference = rows[MERGE][2], rows[MERGE][6]
    assert isinstance(both, Interval) and isinstance(difference, Interval)
    assert (both.estimate, both.num) == (0.25, 12)
    assert (difference.estimate, difference.num) == (0.5, 3)  # three pairs of pictures, not twelve pictures
    assert rows[PROBED][6] is None and "no separation" in table.notes[-1]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were trained in."""
    folders: list[Path] = []
    train = stylize.train

    def noting(config, **rest):
        result = train(config, **rest)
        if not result.already_finished:
            folders.append(result.run_dir)
        return result

    monkeypatch.setattr(stylize, "train", noting)
    return folders


def test_it_trains_draws_and_judges_once(tmp_path: Path, trained: list[Path]):
    base = tiny_base("embedded", tmp_path / "base")
    judge, output = embedded_referee("judge"), tmp_path / "eval"
    table = evaluate_stylize(base, judge, output, TINY)
    assert len(trained) == TINY.num_trainings == 8
    assert [row[0] for row in table.rows] == [PROBED, MERGE, WORDS]
    assert [row[1] for row in table.rows] == [6, 6, 6]
    _, records = read_log(output / "records.jsonl")
    assert len(records) == 18
    pictures = {path: path.stat().st_mtime_ns for path in (output / "pictures").rglob("*.png")}
    assert len(pictures) == 18
    with Image.open(output / "stylize.png") as sheet:
        assert sheet.width > 3 * 96
    again = evaluate_stylize(base, judge, output, TINY)
    assert again == table and len(trained) == 8
    assert {path: path.stat().st_mtime_ns for path in (output / "pictures").rglob("*.png")} == pictures


def test_the_judge_reads_the_embedded_world_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = tiny_base("sd15", tmp_path / "base").root_dir
    with pytest.raises(SystemExit) as ended:
        main(["eval", "stylize", "--base", str(folder), "--output", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "judge reads the embedded model's pictures only" in capfd.readouterr().err
