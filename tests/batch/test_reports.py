"""What a batch leaves for people: sheets by axes, a page that needs nothing else and runs no one's words, scores."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from studio.batch.page import Cell, batch_page
from studio.batch.sheets import grid_sheets
from studio.pipelines.errors import ConfigError
from tests.support.batches import run, write_batch

GRID = """
defaults: {base: base, steps: 1, size: 32}
name: "<b>grid</b>"
jobs:
  - {prompt: a cat, adapters: [one.safetensors], matrix: {strength: [0.0, 0.5], seed: [1, 2]}}
"""


def cells(folder: Path) -> list[Cell]:
    found = []
    for number in range(8):
        axes = {"strength": str(number // 4), "base": "ab"[number // 2 % 2], "seed": str(number % 2)}
        Image.new("RGB", (16, 16), (number * 30, 0, 0)).save(folder / f"{number}.png")
        found.append(
            Cell(
                file=folder / f"{number}.png",
                title="<img src=x onerror=alert(1)>",
                seed=number,
                axes=axes,
                adapters="",
                score=0.5,
            )
        )
    return found


def test_sheets_have_an_axis_a_side_and_one_for_each_value_of_the_rest(tmp_path: Path):
    found = cells(tmp_path)
    by_default = grid_sheets(found, ["strength", "base", "seed"], {}, "t")
    assert len(by_default) == 2 and by_default[0].size == by_default[1].size
    assert len(grid_sheets(found, ["strength", "base", "seed"], {"x": "strength", "y": "seed", "z": "base"}, "t")) == 2
    assert len(grid_sheets(found[:7], [], {"x": "strength"}, "t")) == 2  # one place is empty
    with pytest.raises(ConfigError, match="'steps' does not vary"):
        grid_sheets(found, [], {"x": "steps"}, "t")


def test_words_on_the_page_are_words(tmp_path: Path):
    page = batch_page("<i>", cells(tmp_path), ["seed"], total=9, sheets=["a.png"], failures=[("<u>", "<u>")], trainings=[])
    assert "<img src=x" not in page and "<i>" not in page and "<u>" not in page
    assert not re.findall(r"https?://", page)
    data = json.loads(re.search(r"id='data'>(.*?)</script>", page, re.DOTALL)[1])  # type: ignore[index]
    assert data["axes"] == ["seed", "strength", "base"] and len(data["cells"]) == 8
    assert all(cell["image"].startswith("data:image/png;base64,") for cell in data["cells"])


def test_a_batch_writes_them(tmp_path: Path):
    run(write_batch(tmp_path, GRID), tmp_path / "out", reports=True, scorer="guide")
    out = tmp_path / "out"
    assert (out / "contact-sheet.png").is_file()
    rows = list(csv.DictReader((out / "scores.csv").read_text().splitlines()))
    assert [(row["strength"], row["seed"]) for row in rows] == [("0", "1"), ("0", "2"), ("0.5", "1"), ("0.5", "2")]
    assert all(0.0 <= float(row["prompt_fidelity"]) <= 1.0 for row in rows)
    assert "&lt;b&gt;grid" in (out / "index.html").read_text()
