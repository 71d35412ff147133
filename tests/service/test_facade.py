"""The facade: light to import, and telling what is wrong when a job is handed in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from studio.pipelines.errors import AdapterFileError, ConfigError, MissingFileError, UserError
from studio.service import AdapterChoice, GenerateSpec, State, Studio, Submit, TrainSpec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def studio(tmp_path: Path):
    with Studio(tmp_path / "home") as opened:
        yield opened


def test_importing_it_loads_nothing_heavy():
    code = "import sys, studio.service; print([m for m in ('torch', 'diffusers', 'transformers', 'gradio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_handing_in_and_looking_load_nothing_heavy(tmp_path: Path):
    code = (
        "import sys\nfrom studio.service import *\n"
        f"with Studio({str(tmp_path / 'home')!r}) as s:\n    job = s.generate(GenerateSpec(prompts=('a cat',)))\n"
        "    assert s.jobs() == [job] and s.items().items == () and s.result(job.id).pictures == ()\n"
        "print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_job_is_sure_of_its_seed_and_survives_the_facade(studio: Studio):
    job = studio.generate(GenerateSpec(prompts=("a cat",)), Submit(priority=2))
    asked = studio.request(job.id).spec
    assert isinstance(asked, GenerateSpec)
    assert asked.seed is not None
    with Studio(studio.home) as other:
        assert other.job(job.id) == job
        assert other.job(job.id).state == State.QUEUED


def test_the_same_key_is_the_same_job(studio: Studio):
    spec = GenerateSpec(prompts=("a cat",))
    first = studio.generate(spec, Submit(key="once"))
    assert studio.generate(spec, Submit(key="once")).id == first.id
    assert studio.generate(spec, Submit(key="twice")).id != first.id
    assert studio.generate(spec, Submit(key="once", owner="somebody else")).id != first.id


def test_what_is_wrong_is_told_when_it_is_handed_in(studio: Studio, tmp_path: Path):
    with pytest.raises(MissingFileError, match="no adapter 'nothing'"):
        studio.generate(GenerateSpec(prompts=("a",), adapters=(AdapterChoice(adapter="nothing"),)))
    wrong = tmp_path / "a.safetensors"
    wrong.write_bytes(b"some bytes")
    with pytest.raises(AdapterFileError, match="not the file that is meant"):
        studio.generate(GenerateSpec(prompts=("a",), adapters=(AdapterChoice(adapter=str(wrong), sha256="0" * 64),)))
    with pytest.raises(MissingFileError, match="no base model"):
        studio.generate(GenerateSpec(prompts=("a",), base="not-here"))
    with pytest.raises(MissingFileError, match="no concept"):
        studio.train(TrainSpec(settings={"concept": {"images": "nowhere", "class_noun": "dog"}}))
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.png")
    with pytest.raises(ConfigError, match="stepz"):
        studio.train(
            TrainSpec(settings={"concept": {"images": str(tmp_path), "class_noun": "dog"}, "schedule": {"stepz": 3}})
        )
    with pytest.raises(MissingFileError, match="no job"):
        studio.generate(GenerateSpec(prompts=("a",)), Submit(needs=("260101-000000-aaaaaa",)))
    with pytest.raises(UserError, match="no job's id"):
        studio.job("../../etc")
    assert studio.jobs() == []


def test_reordering_pausing_and_watching(studio: Studio):
    first, second, third = (studio.generate(GenerateSpec(prompts=(word,))) for word in ("one", "two", "three"))
    studio.reorder(third.id, before=first.id)
    studio.reorder(second.id, priority=5)
    assert [job.id for job in studio.queue()] == [second.id, third.id, first.id]
    studio.pause(second.id)
    assert [job.id for job in studio.queue()] == [third.id, first.id, second.id]
    studio.resume(second.id)
    studio.cancel(second.id)
    kinds = [(event.kind, event.data.get("state")) for event in studio.watch(second.id)]
    assert kinds == [("state", "queued"), ("moved", None), ("state", "queued"), ("state", "queued"), ("state", "canceled")]
    assert [event.number for event in studio.watch(second.id, after=3)] == [4, 5]
    studio.retry(second.id)
    assert studio.job(second.id).state == State.QUEUED
    assert studio.prune() == []
