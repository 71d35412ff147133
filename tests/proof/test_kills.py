"""`kill -9` at random moments: everything is begun again once, goes on where it was, and nothing is lost or left behind."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from studio.jobs.job import State
from studio.pipelines.pictures import read_sidecar
from studio.service import GenerateSpec, Job, Studio, TrainSpec
from studio.training.checkpoint import complete_checkpoints, read_checkpoint
from tests.proof.conftest import Sizes
from tests.support.tiny_bases import tiny_embedded_dir

ROOT = Path(__file__).resolve().parents[2]
STEPS, EVERY = 40, 5
PATIENCE = 1200  # seconds: only a guard against hanging; a busy machine takes its time
PICTURES = 16


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_embedded_dir(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


class BackgroundWorker:
    """A real `studio worker` process."""

    def __init__(self, home: Path, *options: str) -> None:
        self.home = home
        command = [sys.executable, "-m", "studio", "worker", "--device", "cpu", "--home", str(home), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.log = (home / "worker.txt").open("ab")
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def children(self) -> list[psutil.Process]:
        """Its processes, and theirs."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> None:
        """As a person would."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    (tmp_path / "home").mkdir()
    with Studio(tmp_path / "home") as opened:
        yield opened


def train_spec(base: Path, photos: Path) -> TrainSpec:
    return TrainSpec(
        settings={
            "concept": {"images": str(photos), "class_noun": "dog"},
            "model": {"base": str(base)},
            "adapter": {"rank": 2},
            "data": {"resolution": 32, "batch_size": 1},
            "schedule": {"steps": STEPS, "warmup_steps": 1},
            "loss": {"prior": "none"},
            "run": {"sample_every": 0, "checkpoint_every": EVERY, "keep_checkpoints": 3},
        }
    )


def draw_spec(base: Path, number: int) -> GenerateSpec:
    return GenerateSpec(
        prompts=(f"a cat number {number}",), num_images=PICTURES, seed=number, steps=12, base=str(base), batch_size=1
    )


def at_work(studio: Studio, job_id: str) -> int:
    """The process that works on a job, once there is one."""
    deadline = time.monotonic() + PATIENCE
    while True:
        job = studio.job(job_id)
        if job.state == State.RUNNING and job.pid is not None:
            return job.pid
        assert not job.is_ended, (job.state, job.error)
        assert time.monotonic() < deadline, job
        time.sleep(0.01)


def wait_for_moment(studio: Studio, job_id: str, dice: random.Random) -> str:
    """Wait for a moment of chance: early in the start-up, or in the middle of the work."""
    if dice.random() < 0.3:
        time.sleep(dice.uniform(0.0, 2.0))
        return "starting"
    share = dice.uniform(0.0, 0.6)
    deadline = time.monotonic() + PATIENCE
    while studio.job(job_id).state == State.RUNNING and time.monotonic() < deadline:
        events = [event for event in studio.watch(job_id, follow=False) if event.kind == "progress"]
        if events and float(events[-1].data["share"]) >= share:
            time.sleep(dice.uniform(0.0, 0.05))
            return "working"
        time.sleep(0.01)
    return "working"


def killed(studio: Studio, job: Job, pid: int) -> bool:
    """Kill the process that works on a job; False if it had written down the end first, and is left alone."""
    os.kill(pid, signal.SIGSTOP)  # so that it does not end between the look and the signal
    result = studio.store.folder(job.id).read_result()
    if result is not None and result.get("attempt") == studio.job(job.id).attempt:
        os.kill(pid, signal.SIGCONT)
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def finished_files(folder: Path) -> dict[Path, bytes]:
    """Checkpoints and pictures that are whole: those stay whatever happens."""
    found = [path for path in folder.rglob("state.json") if not path.parent.name.startswith(".")]
    found += [path for path in folder.rglob("*.png") if path.with_suffix(".json").is_file()]
    return {path: path.read_bytes() for path in found}


def zombies() -> list[int]:
    """Dead children of ours that nobody took note of."""
    return [each.pid for each in psutil.Process().children(recursive=True) if each.status() == psutil.STATUS_ZOMBIE]


def last_state(studio: Studio, job: Job) -> dict[str, Any]:
    """All that a run is at its end: weights, optimizer, averages, torch's chance. (numpy's and Python's, which no training asks,
    begin anew in every process.)"""
    state = read_checkpoint(complete_checkpoints(studio.request(job.id).output_dir / "checkpoints")[-1])
    assert state.step == STEPS
    names = ("step", "micro_step", "trainable", "gradients", "optimizer", "ema", "ema_updates")
    return {name: getattr(state, name) for name in names} | {"torch": state.rng["torch"]}


def same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def checkpoints(folder: Path) -> list[int]:
    return sorted(
        int(path.name.split("-")[1]) for path in (folder / "checkpoints").glob("step-*") if (path / "state.json").is_file()
    )


@dataclass(frozen=True)
class Struck:
    """A job that was killed once. moment: when; step: its last checkpoint then; lost: pictures that were whole and are not."""

    job: Job
    moment: str
    step: int
    lost: list[Path]


def struck(studio: Studio, hand_in: Callable[[], Job], dice: random.Random) -> Struck:
    """Hand in a job, kill what works on it at a moment of chance, and wait for its end; one that was too quick, anew."""
    for _ in range(8):
        job = hand_in()
        pid = at_work(studio, job.id)
        moment = wait_for_moment(studio, job.id, dice)
        if killed(studio, job, pid):
            break
        studio.wait(job.id, PATIENCE)
    else:
        raise AssertionError("jobs end before they can be killed")
    output = studio.request(job.id).output_dir
    kept, step = finished_files(output), max(checkpoints(output), default=0)
    ended = studio.wait(job.id, PATIENCE)
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 2), (job.id, ended.attempt, ended.error, studio.log(job.id))
    lost = [path for path, content in kept.items() if path.suffix == ".png" and path.read_bytes() != content]
    return Struck(job, moment, step, lost)


@pytest.mark.slow
def test_jobs_killed_at_random_moments(studio: Studio, base: Path, photos: Path, sizes: Sizes, record):
    """Trainings and pictures side by side, as a worker does them on a processor."""

    def train() -> tuple[Job, list[Struck]]:
        dice, whole = random.Random(6), studio.train(train_spec(base, photos))
        studio.wait(whole.id, PATIENCE)
        return whole, [
            struck(studio, lambda: studio.train(train_spec(base, photos)), dice) for _ in range(sizes.killed_trainings)
        ]

    def draw() -> tuple[list[Struck], Job]:
        dice, found = random.Random(7), []
        for number in range(sizes.killed_drawings):
            found.append(struck(studio, lambda number=number: studio.generate(draw_spec(base, number)), dice))  # type: ignore[misc]
        whole = studio.generate(draw_spec(base, 0))
        studio.wait(whole.id, PATIENCE)
        return found, whole

    before = set(psutil.Process().children(recursive=True))
    worker = BackgroundWorker(studio.home.root)
    try:
        with ThreadPoolExecutor(2) as pool:
            training, drawing = pool.submit(train), pool.submit(draw)
            (reference, trained), (drawn, plain) = training.result(), drawing.result()
        assert not zombies()
    finally:
        worker.stop()
    assert set(psutil.Process().children(recursive=True)) <= before
    wanted = last_state(studio, reference)
    unequal = [each.job.id for each in trained if not same(last_state(studio, each.job), wanted)]
    pictures = [studio.result(each.job.id).pictures for each in drawn]
    for path in (path for paths in pictures for path in paths):
        values = json.loads(path.with_suffix(".json").read_text())
        assert read_sidecar(path).seed == int(path.name.split("-")[1])
        assert hashlib.sha256(path.read_bytes()).hexdigest() == values["file_sha256"]
    first = [path.read_bytes() for path in pictures[0]]
    assert first == [path.read_bytes() for path in studio.result(plain.id).pictures], "not as an undisturbed job draws them"
    moments = [each.moment for each in (*trained, *drawn)]
    lost = [path for each in (*trained, *drawn) for path in each.lost]
    record(
        "kills",
        jobs_killed=len(moments),
        while_starting=moments.count("starting"),
        while_working=moments.count("working"),
        begun_again_once=len(moments),
        trainings_bit_equal=f"{len(trained) - len(unequal)} of {len(trained)}",
        resumed_from_steps=[each.step for each in trained],
        finished_pictures_lost=len(lost),
        pictures=f"{sum(map(len, pictures))} of {PICTURES * len(drawn)}",
        zombies=0,
    )
    assert not unequal
    assert not lost
    assert [len(paths) for paths in pictures] == [PICTURES] * len(drawn)


@pytest.mark.slow
def test_the_worker_is_killed_and_the_training_goes_on(studio: Studio, base: Path, photos: Path):
    """The next worker finds the process at work and sees to it; nothing is begun again."""
    spec = train_spec(base, photos)
    slow = spec.model_copy(update={"settings": {**spec.settings, "schedule": {"steps": 100, "warmup_steps": 1}}})
    job = studio.train(slow)
    worker = BackgroundWorker(studio.home.root)
    pid = at_work(studio, job.id)
    wait_for_moment(studio, job.id, random.Random(1))
    worker.process.kill()
    worker.process.wait()
    worker.log.close()
    assert psutil.pid_exists(pid)
    second = BackgroundWorker(studio.home.root)
    try:
        ended = studio.wait(job.id, PATIENCE)
    finally:
        second.stop()
    assert (ended.state, ended.attempt) == (State.SUCCEEDED, 1), (ended.error, ended.message)


@pytest.mark.slow
def test_a_job_that_brings_its_process_down_fails_alone(studio: Studio, base: Path):
    """Killed three times it fails with its log; the one beside it is drawn, and a new worker starts as if nothing were."""
    poison = studio.generate(draw_spec(base, 1))
    innocent = studio.generate(draw_spec(base, 2))
    worker = BackgroundWorker(studio.home.root)
    killed = 0
    try:
        while not studio.job(poison.id).is_ended:
            job = studio.job(poison.id)
            if job.state == State.RUNNING and job.pid is not None and job.attempt > killed:
                if killed == 1:
                    with (studio.home.logs / "renderer-cpu.log").open("a") as log:
                        log.write("a last line from the graphics driver\n")
                os.kill(job.pid, signal.SIGKILL)
                killed += 1
            time.sleep(0.01)
        failed = studio.job(poison.id)
        assert (failed.state, failed.attempt) == (State.FAILED, 3)
        assert "begun 3 times" in failed.error
        assert "graphics driver" in studio.log(poison.id)
        assert studio.wait(innocent.id, PATIENCE).state == State.SUCCEEDED
        worker.stop()
        worker = BackgroundWorker(studio.home.root, "--until-empty")
        assert worker.process.wait(timeout=PATIENCE) == 0
    finally:
        worker.stop()


@pytest.mark.slow
def test_cancelling_before_during_and_after(studio: Studio, base: Path, photos: Path):
    training = studio.train(train_spec(base, photos).model_copy(update={"settings": {
        **train_spec(base, photos).settings, "schedule": {"steps": 100_000, "warmup_steps": 1}}}))  # fmt: skip
    drawing = studio.generate(draw_spec(base, 3).model_copy(update={"num_images": 500}))
    never = studio.generate(draw_spec(base, 4))
    assert studio.cancel(never.id).state == State.CANCELED
    worker = BackgroundWorker(studio.home.root)
    try:
        for job in (training, drawing):
            at_work(studio, job.id)
            while studio.job(job.id).progress == 0.0:
                time.sleep(0.02)
            assert studio.cancel(job.id).state == State.CANCELING
            assert studio.wait(job.id, PATIENCE).state == State.CANCELED
            assert studio.cancel(job.id).state == State.CANCELED
        assert checkpoints(studio.request(training.id).output_dir), "it saved before it went"
        assert 0 < len(studio.result(drawing.id).pictures) < 500
        assert studio.job(never.id).attempt == 0
    finally:
        worker.stop()
