"""The demo from end to end, with few steps: what it must leave behind, not how well it learns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from studio.evals.records import read_log
from studio.evals.sample_concepts import load_sample
from studio.training.progress import Silence
from studio.workflows import demo


@pytest.mark.slow
def test_demo_leaves_pictures_scores_and_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.evals.concept.NUM_SEEDS", 2)
    monkeypatch.setattr("studio.workflows.demo.NUM_SEEDS", 2)
    quick = {"schedule.steps": "4", "run.sample_steps": "2", "run.checkpoint_every": "4"}
    result = demo.run_demo(tmp_path, "robot", Silence(), settings=quick, steps=2)

    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert scores["learned"] == result.verdict.learned
    assert set(scores["seconds"]) == {"training", "pictures", "judging"}
    assert all(part["cpu"] > 0 for part in scores["seconds"].values())
    _, records = read_log(tmp_path / "records.jsonl")
    assert len(records) == 3 * 8 * 2
    truth = [record["right"] for record in records if record["arm"] == "truth"]
    assert sum(truth) >= len(truth) * 0.6  # the judge knows the individual when it is really there

    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r"src='([^']+)'", page)
    assert len(shown) == 5 + 8 * 2 + 8 * 2
    assert all((tmp_path / name).is_file() for name in shown)
    assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")  # nothing from the network
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 8 * 192 and grid.height > 3 * 192
    assert (tmp_path / "run" / "adapter.safetensors").is_file()


def test_the_sample_photos_are_what_the_trainer_reads() -> None:
    concept, folder = load_sample("robot")
    assert sorted(path.name for path in folder.glob("*.png")) == [f"{i:02d}.png" for i in range(1, 6)]
    assert all(photo.size == (288, 288) for photo in concept.photos)
