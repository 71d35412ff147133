"""`gradio_client` by the documented names: train, create, compose, each really done, on a tiny base."""

from __future__ import annotations

from pathlib import Path

import pytest
from gradio_client import Client, handle_file

from studio.service import JobResult
from studio.ui.proofs.serving import Served
from studio.ui.samples import sample_photos
from tests.support.tiny_bases import tiny_sd15_dir

pytestmark = pytest.mark.slow

PATIENCE = 300.0
MORE = 'loss.prior = "none"\nrun.sample_every = 0\nrun.checkpoint_every = 2\ndata.batch_size = 1\ndata.resolution = 64'


def done(working: Served, job_id: str, said: str) -> JobResult:
    assert job_id, said
    job = working.studio.wait(job_id, PATIENCE)
    assert job.state == "succeeded", job.error
    return working.studio.result(job_id)


def test_a_program_trains_creates_and_composes(working: Served, tmp_path: Path):
    base = str(tiny_sd15_dir(tmp_path / "base"))
    client = Client(working.address, verbose=False, analytics_enabled=False, download_files=str(tmp_path))
    photos = [handle_file(str(path)) for path in sample_photos("cat")]
    about = {"draft_id": None, "noun": "cat", "token": "ohwx", "goal": "thing", "effort": 1, "base": base, "method": ""}
    settings = {"steps": 2, "rank": 2, "learning_rate": 0, "more": MORE}
    learned = done(working, *client.predict(files=photos, **about, **settings, api_name="/train"))
    (adapter,) = learned.items
    uses = [{"id": adapter, "on": True, "strength": 0.7}]

    form = ("a ohwx cat", "", uses, 7, True, 2, 2, 0, 64, 64, "", base)
    created = done(working, *client.predict(*form, api_name="/create"))
    assert len(created.pictures) == 2
    steered = done(working, *client.predict(*form, {"picture": created.items[0]}, 0.5, api_name="/create"))
    assert len(steered.pictures) == 2 and steered.pictures[0].read_bytes() != created.pictures[0].read_bytes()
    refused, said = client.predict(*form, {"picture": "/etc/passwd"}, 0.5, api_name="/create")
    assert refused == "" and "named by its id" in said

    canvas = {"boxes": [{"id": adapter, "box": [0.0, 0.0, 0.5, 1.0]}]}
    form = ("a ohwx cat", "", uses, canvas, {}, "regional", 1, 7, 2, base, 0, 64, 64)
    composed = done(working, *client.predict(*form, api_name="/compose"))
    assert len(composed.pictures) == 1
    (entry,) = working.studio.request(working.studio.jobs(limit=1)[0].id).spec.plan.entries  # type: ignore[attr-defined]
    assert entry.region.box == (0.0, 0.0, 0.5, 1.0)
