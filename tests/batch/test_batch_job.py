"""A batch as a job: what it names by ids is found, it tells how it gets on, and what failed is done when it is tried again."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.batch.results import read_results
from studio.jobs import child, claims
from studio.jobs.claims import Claimant
from studio.jobs.job import Job, State
from studio.pipelines.pictures import read_sidecar
from studio.service import BatchSpec, Studio, Submit
from tests.library.test_library import write_adapter
from tests.support.tiny_bases import tiny_sd15_dir


def attempt(studio: Studio) -> Job:
    """What a worker does: the next job, in this process but for the batch's own."""
    job = claims.claim(studio.store, Claimant.here("test"), ["batch"], "cpu")
    assert job is not None
    child.main([str(studio.store.folder(job.id).path), str(job.attempt), "cpu"])
    ended = studio.store.folder(job.id).read_result()
    assert ended is not None
    claims.finish(studio.store, job, ended["outcome"], error=ended.get("error", ""))
    return studio.job(job.id)


@pytest.mark.slow
def test_it_is_watched_and_what_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with Studio(tmp_path / "home") as studio:
        adapter = studio.import_adapter(write_adapter(tmp_path / "a.safetensors", seed=1, name="rex")).item
        gone = studio.import_adapter(write_adapter(tmp_path / "b.safetensors", seed=2, name="mug")).item
        base = studio.import_base(tiny_sd15_dir(tmp_path / "base")).item
        content = gone.path.read_bytes()
        gone.path.unlink()
        document = {
            "defaults": {"steps": 2, "size": 32, "base": base.id},
            "jobs": [
                {"prompt": "a cat", "adapters": [adapter.id], "num_images": 2},
                {"prompt": "a mug", "adapters": [gone.id]},
            ],
        }
        options = ("--continue-on-error", "--batch-size", "2")
        job = studio.batch(BatchSpec(document=document, options=options), Submit(owner="anna"))
        ended = attempt(studio)
        output = studio.request(job.id).output_dir
        assert ended.state == State.FAILED, studio.log(job.id)
        assert [each.state for each in read_results(output)] == ["done", "done", "refused"]
        first = [path.read_bytes() for path in studio.result(job.id).pictures]
        assert len(first) == 2 and read_sidecar(studio.result(job.id).pictures[0]).adapters[0].sha256 == adapter.id
        gone.path.write_bytes(content)
        studio.retry(job.id)
        assert attempt(studio).state == State.SUCCEEDED, studio.log(job.id)
        results = read_results(output)
        assert [each.state for each in results] == ["done"] * 3 and results[2].error == ""
        made = studio.result(job.id)
        assert [path.read_bytes() for path in made.pictures[:2]] == first and len(made.pictures) == 3
        assert [studio.item(item).owner for item in made.items] == ["anna"] * 3
        kinds = [event.kind for event in studio.watch(job.id)]
        assert kinds.count("picture") == 3, "each is told once"
        assert [event.data["share"] for event in studio.watch(job.id) if event.kind == "progress"][-1] == 1.0
