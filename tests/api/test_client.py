"""A client generated from the OpenAPI description, against a server that listens: a day's work with the API."""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator

import httpx2
import pytest
import uvicorn
from aiopenapi3 import OpenAPI
from fastapi import FastAPI
from starlette.testclient import TestClient

from studio.api.access import Access
from studio.service import Studio
from tests.api.conftest import V1, adapter_item, png


@pytest.fixture
def server(guarded: FastAPI) -> Iterator[str]:
    running = uvicorn.Server(uvicorn.Config(guarded, port=0, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    running.should_exit = True
    thread.join(20)


@pytest.fixture
def token(access: Access) -> str:
    return access.create("anna", scopes=("read", "draw", "train", "library"))[1]


def generated(server: str, token: str) -> OpenAPI:
    def session(**options: object) -> httpx2.Client:
        return httpx2.Client(**{**options, "timeout": 60.0, "trust_env": False})

    headers = {"Authorization": f"Bearer {token}"}
    description = httpx2.get(f"{server}{V1}/openapi.json", headers=headers, timeout=60.0, trust_env=False).json()
    api = OpenAPI(f"{server}{V1}/openapi.json", description, session_factory=session, use_operation_tags=False)
    api.authenticate(token=token)
    return api


def test_a_days_work(server: str, token: str, studio: Studio):
    api = generated(server, token)
    adapter = adapter_item(studio, "cat")
    ask = {"prompts": ["a cat"], "adapters": [{"adapter": adapter.id, "strength": 0.8}], "num_images": 2}
    first = api._.generate(parameters={"Idempotency-Key": "monday"}, data=ask)
    again = api._.generate(parameters={"Idempotency-Key": "monday"}, data=ask)
    assert first.id == again.id and first.state == "queued" and first.owner == "anna"
    plan = {"prompt": "a cat", "entries": [{"adapter": adapter.id, "words": "cat"}], "strategy": {"name": "merge"}}
    second = api._.compose(data={"plan": plan})
    page = api._.list_jobs(parameters={"limit": 1})
    assert [job.id for job in page.jobs] == [second.id]
    page = api._.list_jobs(parameters={"limit": 1, "cursor": page.next})
    assert [job.id for job in page.jobs] == [first.id] and page.next is None
    assert api._.show_job(parameters={"job_id": first.id}).request.prompts == ["a cat"]
    assert api._.pause(parameters={"job_id": second.id}).held is True
    assert api._.queue().waiting == [first.id, second.id]
    assert api._.cancel(parameters={"job_id": first.id}).state == "canceled"
    item = api._.show_item(parameters={"item_id": adapter.id})
    assert (item.name, item.rank) == ("cat", 4)
    with pytest.raises(Exception, match="404"):
        api._.show_job(parameters={"job_id": "260101-000000-aaaaaa"})
    assert {job.state for job in studio.jobs()} == {"canceled", "queued"}


def test_every_operation_is_one_of_the_client(server: str, token: str, api: TestClient):
    client = generated(server, token)
    description = api.get(f"{V1}/openapi.json").json()
    names = {operation["operationId"] for path in description["paths"].values() for operation in path.values()}
    assert len(names) > 30 and all(hasattr(client._, name) for name in names)
    told = [operation["responses"] for path in description["paths"].values() for operation in path.values()]
    answers = [
        media for each in told for status, answer in each.items() if status < "300" for media in answer["content"].values()
    ]
    assert len(answers) >= len(names) and all(media.get("schema") for media in answers), "a client must know what comes back"


def test_events_arrive_while_it_goes_on(server: str, token: str, studio: Studio):
    headers = {"Authorization": f"Bearer {token}"}
    client = httpx2.Client(base_url=f"{server}{V1}", headers=headers, timeout=60.0, trust_env=False)
    job = client.post("/generate", json={"prompts": ["a cat"]}).json()["id"]
    folder, told = studio.store.folder(job), []
    with client.stream("GET", f"/jobs/{job}/events") as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                told.append(json.loads(line[6:]))
                if len(told) == 1:  # it is there before the next one has happened
                    folder.add_event("progress", value=0.5)
                if len(told) == 2:
                    studio.cancel(job)
    assert [each.get("kind") for each in told] == ["state", "progress", "state", None]
    assert told[-1] == {"state": "canceled"}
    client.close()


def test_what_a_person_types(server: str, token: str):
    """Nothing but the standard library, and an upload by hand."""
    boundary = "0123456789"
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="cat.png"\r\n\r\n'.encode()
    body = part + png() + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": f"multipart/form-data; boundary={boundary}"}
    request = urllib.request.Request(f"{server}{V1}/upload/concept", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 201 and json.load(answer)["item"]["kind"] == "concept"
