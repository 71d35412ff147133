"""The evaluation of a base, whole but tiny: it resumes picture by picture, and labels measure the judge."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from studio.evals.base import evaluate_base, select_prompts, write_label_sheets
from studio.evals.base_tables import fidelity_table
from studio.evals.labels import label_table
from studio.evals.records import read_log
from studio.evals.statistics import Interval
from studio.pipelines.errors import UserError
from studio.pipelines.scoring import EmbeddedScorer
from studio.pipelines.scoring.network import RefereeNetwork
from studio.training.referees.recipe import make_recipe
from tests.support.tiny_bases import tiny_base


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    config = replace(make_recipe("judge").network, widths=(8, 8, 8), region_width=8, identity_dim=8, joint_dim=8)
    return EmbeddedScorer(RefereeNetwork(config), "judge", "0" * 64)


@pytest.fixture(scope="module")
def run(judge, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval")
    base = tiny_base("embedded", folder / "base")
    said = []
    tables = evaluate_base(base, judge, folder / "out", limit=2, steps=2, batch_size=3, num_renders=12, report=said.append)
    return base, folder / "out", tables, said


def test_everything_is_written(run):
    _, folder, tables, said = run
    assert next(table.title.split(",")[0] for table in tables) == "The base model"
    for name in ("fidelity.txt", "fidelity.csv", "fidelity.json", "distances.txt", "records.jsonl", "sheet.png"):
        assert (folder / name).is_file()
    header, records = read_log(folder / "records.jsonl")
    assert header["steps"] == 2
    assert [record["id"] for record in records] == [prompt.id for prompt in select_prompts(2)]
    assert said[-1] == "8 of 8 pictures"
    assert len(list(folder.glob("pictures-*/*.png"))) == 8


def test_it_goes_on_where_it_stopped(run, judge):
    base, folder, tables, _ = run
    records = folder / "records.jsonl"
    before = records.read_text()
    records.write_text("".join(before.splitlines(keepends=True)[:4]))
    victim = sorted(folder.glob("pictures-*/*.png"))[-1]
    pixels = Image.open(victim).convert("RGB").tobytes()
    victim.unlink()
    again = evaluate_base(base, judge, folder, limit=2, steps=2, batch_size=3, num_renders=12, report=lambda line: None)
    assert [table.text() for table in again] == [table.text() for table in tables]
    assert set(records.read_text().splitlines()) == set(before.splitlines())
    drawn = Image.open(victim).convert("RGB").tobytes()
    assert max(abs(one - other) for one, other in zip(pixels, drawn, strict=True)) <= 1


def test_labels_measure_the_judge(run, judge):
    base, folder, _, _ = run
    paths = write_label_sheets(base, judge, folder, num=4, steps=2)
    assert [path.name for path in paths] == ["labels-01.png", "labels.json"]
    header, records = read_log(folder / "records.jsonl")
    labels = json.loads(paths[-1].read_text())
    assert len(labels["labels"]) == 4
    # Records of a perfect judge of pictures that show their prompts: no verdict differs from the template's.
    perfect = [{**record, "items": dict.fromkeys(record["items"], True)} for record in records]
    shares = {row[0]: row[1] for row in label_table(paths[-1], header, perfect).rows}
    assert set(shares) >= {"class", "colour", "style", "background"}
    assert all(isinstance(share, Interval) and share.estimate == 0 for share in shares.values())
    picture = next(iter(labels["labels"]))
    labels["labels"][picture]["objects"] = []
    paths[-1].write_text(json.dumps(labels))
    shares = {row[0]: row[1] for row in label_table(paths[-1], header, perfect).rows}
    assert shares["class"].estimate > 0
    labels["labels"][picture]["objects"] = ["red plain dragon"]
    paths[-1].write_text(json.dumps(labels))
    with pytest.raises(UserError, match="dragon"):
        label_table(paths[-1], header, records)
    with pytest.raises(UserError, match="another base"):
        label_table(paths[-1], {**header, "base": "other"}, records)


def test_the_table_counts_what_the_records_say():
    def record(group, **items):
        return {"group": group, "items": items, "cosine": 0.5}

    one = {"object 1 class": True, "object 1 colour": False, "style": True, "background": True}
    two = {f"object {n} {what}": True for n in (1, 2) for what in ("class", "colour")}
    records = [
        record("one", **one),
        record("one", **one, **{"object 1 pattern": True}),
        record("two", **two, relation=True, style=True, background=False),
        record("two", **{**two, "object 2 colour": False}, relation=False, style=True, background=False),
    ]
    rows = {(row[0], row[1]): row[2] for row in fidelity_table(records, "note").rows}
    assert rows["one", "class"].estimate == 1
    assert rows["one", "colour"].estimate == 0
    assert rows["one", "pattern, where named"].num == 1
    assert rows["two", "each its own colour"].estimate == 0.5
    assert rows["two", "objects in their colour"].estimate == 0.75
    assert rows["two", "relation"].estimate == 0.5
