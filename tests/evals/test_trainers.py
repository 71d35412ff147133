"""`studio eval trainers` from end to end on a tiny random base: what it leaves behind, and that it resumes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from studio.evals import trainers_training
from studio.evals.records import read_log
from studio.evals.trainers import evaluate_trainers
from studio.evals.trainers_plan import Budget
from studio.evals.trainers_worker import peak_bytes
from studio.pipelines.errors import ConfigError, StudioError
from tests.support.tiny_bases import tiny_embedded_dir

ROOT = Path(__file__).parents[2]
TINY = Budget(
    name="tiny",
    individuals=(("mug", 5),),
    styles=("sketch",),
    seeds=(0,),
    settings={"schedule.steps": 2, "run.checkpoint_every": 1, "run.sample_every": 2, "run.sample_steps": 1},
    num_picture_seeds=2,
    picture_steps=1,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedded_dir(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished evaluation of one method."""
    output = tmp_path_factory.mktemp("eval") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("studio.evals.concept.NUM_PEERS", 2)
        evaluate_trainers(TINY, output, methods=["dreambooth-lora"], base=base)
    return output


@pytest.mark.slow
def test_it_leaves_records_tables_pictures_and_a_page(finished: Path):
    header, records = read_log(finished / "records.jsonl")
    assert header["budget"] == "tiny"
    pictures = [record for record in records if record["kind"] != "training"]
    assert len(pictures) == 2 * 3 * 8 * 2  # subjects, arms, prompts, seeds
    assert {record["arm"] for record in pictures} == {"base", "ours", "truth"}
    assert all(0 <= record["diversity"] <= 1 for record in pictures)
    trainings = [record for record in records if record["kind"] == "training"]
    assert [record["concept"] for record in trainings] == ["mug-5", "style-sketch"]
    for training in trainings:
        assert training["num_parameters"] > 0 and training["steps"] == 2
        assert training["step_cpu_seconds"] > 0 and training["peak_bytes"] > 50 * 2**20
        assert training["file_bytes"] > 2 * training["num_parameters"]  # half precision, and a header
        assert (finished / training["run"] / "index.html").is_file()

    for name in ("individuals", "styles", "cost"):
        assert (finished / f"{name}.txt").read_text(encoding="utf-8").count("dreambooth-lora") == 1
    page = (finished / "index.html").read_text(encoding="utf-8")
    for target in re.findall(r"(?:src|href)='([^']+)'", page):
        assert (finished / target).is_file(), target
    assert "http" not in page.replace('xmlns="http://www.w3.org/2000/svg"', "")  # nothing from the network
    with Image.open(finished / "grid-mug-5.png") as grid:
        assert grid.width > 8 * 192 and grid.height > 3 * 192


@pytest.mark.slow
def test_the_captions_leave_the_style_to_the_token(finished: Path):
    captions = [path.read_text(encoding="utf-8") for path in (finished.parent / "trained/photos/style-sketch-all").glob("*.txt")]
    assert len(captions) == 5
    assert all("{token} {class_noun}" in caption and "sketch" not in caption for caption in captions)


@pytest.mark.slow
def test_nothing_is_done_twice(finished: Path, base: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object) -> None:
        raise AssertionError("a training was started")

    monkeypatch.setattr(trainers_training, "run_worker", refuse)
    monkeypatch.setattr("studio.evals.concept.NUM_PEERS", 2)
    before = (finished / "records.jsonl").read_bytes()
    evaluate_trainers(TINY, finished, methods=["dreambooth-lora"], base=base)
    assert (finished / "records.jsonl").read_bytes() == before

    # A log that lost the last item is completed from the kept training, and the pictures come out the same.
    lines = before.decode().splitlines(keepends=True)
    kept = [line for line in lines if '"style-sketch/dreambooth-lora/seed-0' not in line]
    (finished / "records.jsonl").write_text("".join(kept), encoding="utf-8")
    evaluate_trainers(TINY, finished, methods=["dreambooth-lora"], base=base)
    assert sorted((finished / "records.jsonl").read_text(encoding="utf-8").splitlines()) == sorted(before.decode().splitlines())


@pytest.mark.slow
def test_another_setting_is_another_training(finished: Path, base: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[dict[str, object]] = []

    def note(job: dict[str, object], *rest: object) -> None:
        asked.append(job)
        raise StudioError("that is enough")

    monkeypatch.setattr(trainers_training, "run_worker", note)
    with pytest.raises(StudioError, match="2 of 2 items failed.*enough"):  # and the one does not keep the other from trying
        evaluate_trainers(replace(TINY, seeds=(1,)), finished, methods=["dreambooth-lora"], base=base)
    assert len(asked) == 2
    settings = asked[0]["settings"]
    assert isinstance(settings, dict)
    assert settings["run.seed"] == 1 and settings["adapter.method"] == "dreambooth-lora"


def test_a_failed_training_says_why(tmp_path: Path):
    from studio.training.signals import StopRequest

    job = {"settings": {"concept.images": "there", "concept.class_noun": "dog", "schedule.stepz": 3}, "measured": "m"}
    with pytest.raises(StudioError, match=r"a training failed: .*schedule\.steps.*training\.log"):
        trainers_training.run_worker(json.loads(json.dumps(job)), tmp_path, StopRequest())


def test_an_unknown_method_is_refused_before_anything_is_loaded(tmp_path: Path):
    with pytest.raises(ConfigError, match="no-such-method"):
        evaluate_trainers(TINY, tmp_path / "out", methods=["no-such-method"], base=tmp_path / "no base")
    assert not (tmp_path / "out").exists()


def test_the_peak_is_of_the_process_and_not_of_the_one_that_started_it():
    held = bytearray(b"x" * 400_000_000)
    program = "from studio.evals.trainers_worker import peak_bytes; print(peak_bytes())"
    alone = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert 50e6 < int(alone.stdout) < peak_bytes()
    assert peak_bytes() > len(held)
