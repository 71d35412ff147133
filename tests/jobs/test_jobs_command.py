"""`studio jobs`, `studio library` and `studio doctor` as a person calls them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from studio.cli.jobs_requests import read_spec
from studio.cli.main import main
from studio.jobs.devices import child_environment, default_devices
from studio.jobs.specs import BatchSpec, ComposeSpec, GenerateSpec, TrainSpec
from studio.pipelines.errors import ConfigError, MissingFileError, UserError


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("STUDIO_HOME", str(tmp_path / "home"))

    def call(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        printed = capsys.readouterr()
        assert end.value.code == code, printed.err
        return printed.out if code == 0 else printed.err

    return call


def test_from_handing_in_to_pruning(studio):
    first = studio(
        "jobs", "add", "generate", "--set", "prompts=[a red cat]", "--set", "num_images=2", "--title", "my cat"
    ).strip()
    second = studio("jobs", "add", "generate", "--set", "prompts=[a dog]", "--needs", first, "--priority", "3").strip()
    listed = json.loads(studio("jobs", "list", "--json"))
    assert [job["id"] for job in listed] == [second, first]
    assert "my cat" in studio("jobs", "list", "--state", "queued")
    shown = json.loads(studio("jobs", "show", second, "--json"))
    assert shown["needs"] == [first]
    assert shown["request"]["prompts"] == ["a dog"]
    assert "paused" in studio("jobs", "pause", first)
    assert "queued" in studio("jobs", "resume", first)
    assert "queued" in studio("jobs", "move", second, "--before", first)
    studio("jobs", "pause")
    studio("jobs", "resume")
    assert "canceled" in studio("jobs", "cancel", first)
    assert "canceled" in studio("jobs", "watch", second), "it needed the first one"
    assert "queued" in studio("jobs", "retry", first)
    studio("jobs", "cancel", first)
    studio("jobs", "prune", "--days", "0")
    assert json.loads(studio("jobs", "list", "--json")) == []
    assert "no job" in studio("jobs", "show", first, code=3)
    assert "no job's id" in studio("jobs", "show", "../../etc/passwd", code=2)


def test_mistakes_are_sentences(studio, tmp_path: Path):
    assert "no kind of job 'paint'" in studio("jobs", "add", "paint", code=2)
    assert "prompts: it is needed" in studio("jobs", "add", "generate", code=2)
    assert "stepz: there is no such setting" in studio(
        "jobs", "add", "generate", "--set", "prompts=[a]", "--set", "stepz=3", code=2
    )
    assert "steps: " in studio("jobs", "add", "generate", "--set", "prompts=[a]", "--set", "steps=many", code=2)
    assert "There is no file" in studio("jobs", "add", "train", str(tmp_path / "none.toml"), code=3)
    assert "is not paused" in studio("jobs", "resume", studio("jobs", "add", "generate", "--set", "prompts=[a]").strip(), code=2)


def test_every_kind_is_read_from_its_own_file(tmp_path: Path):
    (tmp_path / "a.toml").write_text("[concept]\nimages = 'photos'\nclass_noun = 'dog'\n")
    train = read_spec("train", tmp_path / "a.toml", ["settings.schedule.steps=7"])
    assert isinstance(train, TrainSpec)
    assert train.settings == {"concept": {"images": "photos", "class_noun": "dog"}, "schedule": {"steps": 7}}
    (tmp_path / "plan.yaml").write_text("prompt: a cat\nentries: []\n")
    compose = read_spec("compose", tmp_path / "plan.yaml", [])
    assert isinstance(compose, ComposeSpec)
    assert compose.plan.prompt == "a cat"
    batch = read_spec("batch", tmp_path / "plan.yaml", [])
    assert batch == BatchSpec(file=str(tmp_path / "plan.yaml"))
    (tmp_path / "g.json").write_text('{"prompts": ["a"], "adapters": [{"adapter": "Rex"}]}')
    generate = read_spec("generate", tmp_path / "g.json", ["seed=5"])
    assert isinstance(generate, GenerateSpec)
    assert generate.seed == 5
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_spec("generate", tmp_path / "bad.yaml", [])
    with pytest.raises(MissingFileError):
        read_spec("generate", tmp_path / "none.yaml", [])


def test_the_library_by_command(studio, tmp_path: Path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40), (number * 80, 0, 0)).save(photos / f"{number}.png")
    studio("library", "import", str(photos), "--kind", "concept", "--name", "rex", "--class-noun", "dog", "--tag", "mine")
    assert "rex" in studio("library", "list", "dog", "--kind", "concept")
    studio("library", "edit", "rex", "--notes", "from the park", "--favourite", "--tag", "two words")
    shown = json.loads(studio("library", "show", "rex", "--json"))
    assert (shown["notes"], shown["favourite"], shown["tags"]) == ("from the park", True, ["mine", "two words"])
    studio("library", "trash", "rex")
    assert "no item 'rex'" in studio("library", "show", "rex", code=3)
    assert "rex" in studio("library", "trash")
    studio("library", "restore", "rex")
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x02}q\x00(X\x05\x00\x00\x00stateq\x01")
    assert "is a pickle" in studio("library", "import", str(tmp_path / "pickle.safetensors"), code=2)
    studio("library", "duplicates")
    studio("library", "rescan")


def test_a_child_sees_its_own_gpu():
    assert child_environment("cuda:1", {})[0]["CUDA_VISIBLE_DEVICES"] == "1"
    assert child_environment("cuda:1", {"CUDA_VISIBLE_DEVICES": "4,7"}) == ({"CUDA_VISIBLE_DEVICES": "7"}, "cuda")
    assert child_environment("cpu", {})[1] == "cpu"
    cores = os.cpu_count() or 1
    assert child_environment("cpu", {})[0]["OMP_NUM_THREADS"] == str(max(1, cores - 1))
    assert child_environment("cpu", {"OMP_NUM_THREADS": "5"})[0]["OMP_NUM_THREADS"] == "5"
    assert "OMP_NUM_THREADS" not in child_environment("cuda", {})[0]
    assert default_devices({"CUDA_VISIBLE_DEVICES": "4,7"}) == ("cuda:0", "cuda:1")
    assert default_devices({"PATH": "/nowhere"}) == ("cpu",)
    with pytest.raises(UserError, match="names 1 devices"):
        child_environment("cuda:1", {"CUDA_VISIBLE_DEVICES": "3"})
    with pytest.raises(UserError, match="is no device"):
        child_environment("gpu; rm -rf", {})
