"""Trainings of a batch: each in a process of its own, done once, on several devices by `accelerate launch`, and stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from studio.batch.expansion import expand
from studio.batch.folder import DONE
from studio.batch.reading import read_batch
from studio.batch.resolving import Resolver
from studio.batch.results import read_json
from studio.batch.tasks import TrainTask
from studio.batch.training import train_task, training_command
from studio.pipelines.errors import Interrupted, StudioError
from tests.support.batches import run, write_batch

TRAININGS = """
training: {model.base: base, concept.images: photos, concept.class_noun: dog, loss.prior: none, run.device: cpu,
  run.sample_every: 0, data.resolution: 32, data.batch_size: 1, adapter.train_text_encoder: false}
jobs:
  - {method: dreambooth-lora, num_processes: 2, schedule.steps: 1, matrix: {adapter.rank: [2]}}
  - {method: dreambooth-lora, schedule.steps: STEPS, run.checkpoint_every: 1, adapter.rank: 4}
"""


def write_trainings(folder: Path, steps: int = 1) -> Path:
    (folder / "photos").mkdir()
    for number in range(2):
        Image.new("RGB", (48, 48), (200 * number, 90, 40)).save(folder / "photos" / f"{number}.png")
    return write_batch(folder, TRAININGS.replace("STEPS", str(steps)))


def tasks_of(file: Path) -> list[TrainTask]:
    tasks, refused = Resolver([file.parent]).resolve(expand(read_batch(file)))
    assert not refused, refused[0].error
    assert all(isinstance(task, TrainTask) for task in tasks)
    return tasks  # type: ignore[return-value]


def test_identity_is_of_settings_and_photos_and_not_of_places(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_trainings(tmp_path / name)
    ids = [[task.id for task in tasks_of(tmp_path / name / "batch.yaml")] for name in ("a", "b")]
    assert ids[0] == ids[1] and len(set(ids[0])) == 2
    Image.new("RGB", (48, 48), (1, 2, 3)).save(tmp_path / "b" / "photos" / "0.png")
    assert not set(ids[0]) & {task.id for task in tasks_of(tmp_path / "b" / "batch.yaml")}


def test_commands_are_lists_of_arguments(tmp_path: Path):
    several, one = tasks_of(write_trainings(tmp_path))
    assert "accelerate.commands.launch" in training_command(several, tmp_path / "x.toml", "cuda")
    assert training_command(one, tmp_path / "x.toml", "cpu")[1:5] == ["-m", "studio", "train", "dreambooth-lora"]


@pytest.mark.slow
def test_they_are_trained_once_and_a_failure_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    file = write_trainings(tmp_path)
    outcome = run(file, tmp_path / "out")
    assert (outcome.done_now, outcome.failed) == (2, {})
    marks = [read_json(path) for path in (tmp_path / "out" / "runs").glob(f"*/{DONE}")]
    assert {mark["job"] for mark in marks} == {task.id for task in tasks_of(file)}
    assert run(file, tmp_path / "out").done_before == 2
    _, one = tasks_of(file)
    missing = one.model_copy(update={"settings": {**one.settings, "model": {"base": str(tmp_path / "none")}}})
    with pytest.raises(StudioError, match="code 3: There is no base model"):
        train_task(missing, tmp_path / "failed", device="cpu")


@pytest.mark.slow
def test_one_that_is_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    _, task = tasks_of(write_trainings(tmp_path, steps=4000))
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train_task(task, folder, device="cpu", should_stop=lambda: len(list((folder / "checkpoints").glob("step-*"))) > 1)
    kept = len(list((folder / "checkpoints").glob("step-*")))
    assert kept > 1 and not (folder / DONE).exists()
