"""The warm worker: the second picture costs little more than its denoising, and requests of several people share passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.jobs.job import State
from studio.service import AdapterChoice, GenerateSpec, Job, Studio, Submit
from tests.library.test_library import write_adapter
from tests.proof.test_kills import PATIENCE, BackgroundWorker
from tests.support.tiny_bases import tiny_sd15_dir


def seconds_of(studio: Studio, job: Job) -> float:
    """From the claim to the end."""
    states = {event.data["state"]: event.time for event in studio.watch(job.id) if event.kind == "state"}
    return states["succeeded"] - states["running"]


@pytest.mark.slow
def test_the_second_picture_is_little_more_than_its_denoising(tmp_path: Path, record):
    """On the embedded base at its usual size and steps."""
    (tmp_path / "home").mkdir()
    with Studio(tmp_path / "home") as studio:
        worker = BackgroundWorker(studio.home.root)
        try:
            jobs = []
            for number in range(4):
                jobs.append(studio.generate(GenerateSpec(prompts=("a red cat",), seed=number)))
                assert studio.wait(jobs[-1].id, PATIENCE).state == State.SUCCEEDED
        finally:
            worker.stop()
        facts = [studio.result(job.id).facts or {} for job in jobs]
        ratios = [seconds_of(studio, job) / float(each["denoise_seconds"]) for job, each in zip(jobs, facts, strict=True)]
        record(
            "warm",
            first_picture_over_its_denoising=round(ratios[0], 2),
            later_pictures_over_their_denoising=[round(ratio, 3) for ratio in ratios[1:]],
            denoise_seconds=[each["denoise_seconds"] for each in facts],
        )
        assert min(ratios[1:]) <= 1.5
        assert ratios[0] > max(ratios[1:]), "the first one loads the model"


@pytest.mark.slow
def test_requests_with_different_adapters_share_a_pass_and_wrong_ones_fail_alone(tmp_path: Path):
    base = tiny_sd15_dir(tmp_path / "base")
    (tmp_path / "home").mkdir()
    with Studio(tmp_path / "home") as studio:
        names = [f"n{seed}" for seed in range(5)]
        for seed, name in enumerate(names):
            studio.import_adapter(write_adapter(tmp_path / f"{seed}.safetensors", seed=seed, name=name))
        jobs = [
            studio.generate(
                GenerateSpec(
                    prompts=("a dog",), seed=7, steps=6, base=str(base), adapters=(AdapterChoice(adapter=name, strength=4.0),)
                ),
                Submit(owner=f"person {number}"),
            )
            for number, name in enumerate(names)
        ]
        gone = studio.item("n4").path
        gone.unlink()
        worker = BackgroundWorker(studio.home.root, "--until-empty")
        try:
            assert worker.process.wait(timeout=PATIENCE) == 0
        finally:
            worker.stop()
        ended = [studio.job(job.id) for job in jobs]
        assert [job.state for job in ended] == [State.SUCCEEDED] * 4 + [State.FAILED]
        assert "no longer at" in ended[4].error
        pictures = [studio.result(job.id).pictures[0].read_bytes() for job in jobs[:4]]
        assert len(set(pictures)) == 4, "each has its own adapter"
        shared = {tuple(studio.result(job.id).facts or {}) for job in jobs[:4]}
        times = [(studio.result(job.id).facts or {})["denoise_seconds"] for job in jobs[:4]]
        assert len(shared) == 1
        assert len(set(times)) < 4, "the four were drawn in fewer passes than four"
        assert studio.items().items[0].facts["job"] in {job.id for job in jobs}
