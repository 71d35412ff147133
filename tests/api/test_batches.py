"""Batches over HTTP: one job from a document, told request by request; whatever is put together in it, ids and never paths."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from studio.api.app import create_app
from studio.api.settings import ApiSettings, Limits
from studio.batch.axes import MAX_REQUESTS
from studio.batch.expansion import expand
from studio.batch.fields import GenerateRequest
from studio.batch.reading import batch_of
from studio.pipelines.errors import ConfigError
from studio.service import BatchSpec, Studio
from tests.api.conftest import V1, adapter_item, client, png, problem


def send(api: TestClient, jobs: list, key: str | None = None, **more) -> object:
    headers = {} if key is None else {"Idempotency-Key": key}
    top = {name: more.pop(name) for name in list(more) if name in TOP}
    return api.post(f"{V1}/batches", json={"document": {"jobs": jobs, **top}, **more}, headers=headers)


TOP = ("defaults", "matrix", "zip", "exclude", "wildcards", "wildcards_dir", "wildcard_count", "training", "name")


def concept(api: TestClient) -> str:
    files = [("files", ("one.png", png(), "image/png"))]
    return api.post(f"{V1}/upload/concept", files=files, data={"class_noun": "dog"}).json()["item"]["id"]


def test_a_document_becomes_one_job(api: TestClient, studio: Studio):
    adapter, photos = adapter_item(studio).id, concept(api)
    jobs = [
        {"prompt": f"a cat <lora:{adapter}:0.5>", "matrix": {"seed": "1-3"}},
        {"prompt": "a {red|blue} cat", "adapters": [f"{adapter}:0.7"]},
        {"prompt": "two cats", "entries": [{"adapter": adapter}, {"adapter": adapter}], "strategy": "switch"},
        {"method": "dreambooth-lora", "concept.images": photos},
    ]
    first = send(api, jobs, key="monday", name="winter", batch_size=4)
    assert first.status_code == 202, first.text
    assert send(api, jobs, key="monday", name="winter", batch_size=4).json() == first.json()
    job = studio.job(first.json()["id"])
    assert (job.kind, job.title) == ("batch", "winter")
    spec = studio.request(job.id).spec
    assert isinstance(spec, BatchSpec) and spec.file is None
    assert spec.options == ("--batch-size", "4", "--continue-on-error")
    assert spec.document["jobs"] == jobs
    assert api.get(f"{V1}/jobs/{job.id}").json()["request"]["document"]["name"] == "winter"
    shown = api.get(f"{V1}/batches/{job.id}").json()
    assert (shown["job"]["state"], shown["requests"]) == ("queued", 0)
    assert api.get(f"{V1}/batches/{job.id}/results").json() == {"results": [], "next": None}
    problem(api.get(f"{V1}/batches/{job.id}/sheet"), 404)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("txt", "a cat --d 3 --n blurry\n# note\na dog\n"),
        ("csv", "prompt,seed\na cat,3\na dog,4\n"),
        ("jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog"}\n'),
    ],
)
def test_texts_of_every_encoding(api: TestClient, studio: Studio, form: str, text: str):
    answer = api.post(f"{V1}/batches", json={"text": text, "form": form})
    assert answer.status_code == 202
    document = studio.request(answer.json()["id"]).spec.document
    assert [job["prompt"] for job in document["jobs"]] == ["a cat", "a dog"]
    problem(api.post(f"{V1}/batches", json={"text": text, "form": form, "document": {"jobs": ["a cat"]}}), 422)
    problem(api.post(f"{V1}/batches", json={}), 422)
    wrong = {"txt": "a cat --wrong 3", "csv": "prompt,wrong\na cat,1", "jsonl": "{"}[form]
    problem(api.post(f"{V1}/batches", json={"text": wrong, "form": form}), 422)


NAMES = ["/etc/passwd", "../../x.safetensors", "cat.safetensors", "https://example.com/a.safetensors", "0" * 64, "cat"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_ids_names_a_file(api: TestClient, studio: Studio, name: str):
    """Written down, put there by a default or an axis, or hidden in a prompt."""
    adapter, photos = adapter_item(studio).id, concept(api)
    training = {"method": "dreambooth-lora", "concept.images": photos}
    refused: list[tuple[dict, dict]] = [
        ({"prompt": "a", "adapters": [name]}, {}),
        ({"prompt": "a", "adapters": [{"file": name}]}, {}),
        ({"prompt": "a", "adapters": [adapter], "matrix": {"adapters.0.file": [adapter, name]}}, {}),
        ({"prompt": "a"}, {"matrix": {"adapters": [[adapter], [name]]}}),
        ({"prompt": "a"}, {"defaults": {"lora": name}}),
        ({"prompt": "a", "base": name}, {}),
        ({"prompt": "a", "zip": {"model": ["embedded", name]}}, {}),
        ({"plan": name}, {}),
        ({"prompt": "a", "entries": [{"adapter": name}]}, {}),
        ({"prompt": "a", "entries": [{"adapter": adapter, "region": {"mask": name}}]}, {}),
        ({"prompt": "a", "entries": [{"adapter": adapter}], "matrix": {"plan": [name]}}, {}),
        ({"prompt": "a"}, {"wildcards_dir": name}),
        ({"prompt": "a __time__"}, {}),
        ({**training, "concept.images": name}, {}),
        ({**training, "config": name}, {}),
        ({**training, "model.base": name}, {}),
        ({**training, "run.output_dir": name}, {}),
        (training, {"training": {"run.output_dir": name}}),
        (training, {"matrix": {"concept.images": [photos, name]}}),
    ]
    if ":" not in name:
        refused.append(({"prompt": f"a <lora:{name}:1>"}, {}))
        refused.append(({"prompt": "a {b|<lora:" + name + ":1>}"}, {}))
        refused.append(({"prompt": "a X", "replace": {"X": f"<lora:{name}:1>"}}, {}))
    for job, top in refused:
        answer = send(api, [job], **top)
        assert answer.status_code == 422, (job, top, answer.text)
        problem(answer, 422)
    assert studio.jobs() == []


def test_how_much_it_may_be(studio: Studio):
    api = client(create_app(studio, ApiSettings(limits=Limits(pictures=20))))
    assert send(api, [{"prompt": "a", "num_images": 20}]).status_code == 202
    for job in (
        {"prompt": "a", "num_images": 21},
        {"prompt": "a", "matrix": {"seed": "1-21"}},
        {"prompt": "a", "matrix": {"seed": "1-1000000000"}},
        {"prompt": "a", "matrix": {"strength": f"0-1 [{MAX_REQUESTS + 1}]"}},
        {"prompt": "a", "matrix": {"strength": f"0-{'9' * 400}.0"}},
        {"prompt": "{a|b|c|d|e} {a|b|c|d|e}"},
        {"prompt": "{" * 300 + "a|b" + "}" * 300},
        {"prompt": "{a|b}" * 1000},
        {"prompt": "a" * 10_000, "replace": {"a": "b" * 10_000}},
        {"prompt": "a", "replace": {"": "b"}},
    ):
        assert send(api, [job]).status_code == 422, job
    problem(send(api, ["{a|b}"], wildcards="random", wildcard_count=10**9), 422)
    problem(send(api, [{"prompt": "a", "exclude": [{"seed": 1}] * 1001}]), 422)
    problem(send(api, [{"prompt": "a", "sampler": "nonsense"}]), 422)
    assert len(studio.jobs()) == 1


KEYS = ["jobs", "prompt", "seed", "matrix", "zip", "exclude", "defaults", "adapters", "adapters.0.strength", "size", "replace",
        "entries", "strategy", "strategy.name", "method", "concept.images", "num_images", "wildcards", "kind", "grid", "name",
        "replace.a", "plan", "", ".", "a.b.c"]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["a", "1-3", "0-1 [2]", "9-1 (+1)", "{a|b}", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(values=VALUES, prompt=st.sampled_from(["a", "a {b|c}", "__x__", "<lora:x>", "[[a,b]]"]))
def test_whatever_a_document_holds_it_is_expanded_or_told_in_a_sentence(values: object, prompt: str):
    jobs = [{"prompt": prompt, **values} if isinstance(values, dict) else values]
    with contextlib.suppress(ConfigError):
        assert 1 <= len(expand(batch_of({"jobs": jobs}, Path("batch"), opens_files=False), 100)) <= 100


def test_requests_are_told_by_pages_without_paths(api: TestClient, studio: Studio):
    job_id = send(api, [{"prompt": "a cat", "matrix": {"seed": "0-4"}}, "a dog"]).json()["id"]
    folder, output = studio.store.folder(job_id), studio.request(job_id).output_dir
    output.mkdir()
    lines = [{"index": n, "where": "batch.json, job 1", "axes": {"seed": str(n)}, "id": f"{n}", "kind": "generate",
              "title": "a cat", "seed": n, "group": 0, "row": n} for n in range(5)]  # fmt: skip
    lines.append({"index": 5, "where": "batch.json, job 2", "axes": {}})
    (output / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = [
        {"id": "0", "state": "failed", "error": "out of memory", "time": "1"},
        {"id": "1", "state": "failed", "error": f"{studio.home.root}/library/x.safetensors is gone", "time": "2"},
        {"id": "0", "state": "done", "file": "0.png", "seconds": 1.5, "time": "3"},
        {"index": 5, "state": "refused", "where": "batch.json, job 2", "error": "there is no adapter", "time": "0"},
    ]
    (output / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told) + '{"id": "2", "sta')
    (output / "scores.csv").write_text("index,file,seed,prompt,prompt_fidelity\n0,0.png,0,a cat,0.5000\n")
    (output / "0.png").write_bytes(png())
    (output / "contact-sheet.png").write_bytes(png(colour=9))
    folder.add_event("picture", path=str(output / "0.png"), index=0, item="f" * 64)
    assert {key: api.get(f"{V1}/batches/{job_id}").json()[key] for key in ("requests", "done", "failed", "waiting")} == {
        "requests": 6,
        "done": 1,
        "failed": 2,
        "waiting": 3,
    }
    page = api.get(f"{V1}/batches/{job_id}/results", params={"limit": 4}).json()
    rest = api.get(f"{V1}/batches/{job_id}/results", params={"limit": 4, "cursor": page["next"]}).json()
    results = [*page["results"], *rest["results"]]
    assert [each["state"] for each in results] == ["done", "failed", "waiting", "waiting", "waiting", "refused"]
    assert rest["next"] is None and str(studio.home.root) not in json.dumps(results)
    assert (results[0]["item"], results[0]["score"], results[0]["axes"]) == ("f" * 64, 0.5, {"seed": "0"})
    assert api.get(results[0]["picture"]).content == png()
    assert results[1]["error"] == "x.safetensors is gone" and results[5]["error"] == "there is no adapter"
    failed = api.get(f"{V1}/batches/{job_id}/results", params={"state": ["failed", "refused"]}).json()["results"]
    assert [each["index"] for each in failed] == [1, 5]
    assert api.get(f"{V1}/batches/{job_id}/sheet").content == png(colour=9)


def test_whose_it_is_and_who_may(of: Callable[..., TestClient], studio: Studio):
    anna, drawer = of("anna"), of("ben", "read", "draw")
    job_id = send(anna, ["a cat"]).json()["id"]
    for path in (f"/batches/{job_id}", f"/batches/{job_id}/results", f"/batches/{job_id}/sheet"):
        problem(drawer.get(V1 + path), 404)
    problem(send(drawer, [{"method": "dreambooth-lora", "concept.images": "0" * 64}]), 403)
    problem(send(drawer, [{"prompt": "a", "adapters": [adapter_item(studio, owner="anna").id]}]), 422)
    problem(send(of("eve", "read"), ["a cat"]), 403)
    other = anna.post(f"{V1}/generate", json={"prompts": ["a"]}).json()["id"]
    problem(anna.get(f"{V1}/batches/{other}"), 404)


def test_the_service_takes_a_document_too(studio: Studio):
    with pytest.raises(ConfigError, match="no field 'promt'"):
        studio.batch(BatchSpec(document={"jobs": [{"promt": "a cat", "prompt": "a"}]}))
    with pytest.raises(ValueError, match="one of them alone"):
        BatchSpec(file="a.txt", document={"jobs": ["a"]})
    job = studio.batch(BatchSpec(document={"jobs": ["a cat"]}))
    assert job.title == "batch"
    (request,) = expand(batch_of(studio.request(job.id).spec.document, studio.home.root / "batch.json"))
    assert isinstance(request.request, GenerateRequest) and request.request.prompt == "a cat"
