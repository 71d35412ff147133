"""What a request can reach: no path leads out, and no address is fetched, through any endpoint there is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from studio.service import Studio
from tests.api.conftest import V1, adapter_item
from tests.api.test_guards import every_route

PATHS = [
    "../../../../etc/passwd",
    "/etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "..\\..\\windows\\win.ini",
    "\\\\server\\share\\file",
    "C:/Windows/win.ini",
    "file:///etc/passwd",
    "passwd%00.png",
    "jobs.sqlite3",
    "access.sqlite3 ",
    "access.sqlite3.",
    "a" * 300,
    "~root/.ssh/id_rsa",
]
ADDRESSES = [
    "http://169.254.169.254/latest/meta-data/",
    "http://127.0.0.1:22/",
    "http://[::1]/",
    "https://example.com/lora.safetensors",
    "ftp://example.com/a.png",
    "file:///etc/passwd",
    "//example.com/a",
    "runwayml/stable-diffusion-v1-5",
    "data:image/png;base64,AAAA",
]
WATCHED = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request"}

_seen: list[tuple[str, object]] = []
_watching = [False]


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watching[0] and (event in WATCHED or (event == "open" and "/etc/" in str(arguments[0]))):
        _seen.append((event, arguments))


@pytest.fixture(scope="module", autouse=True)
def hook():
    sys.addaudithook(_watch)  # stays for the life of the process, and does nothing unless it is told to watch


@pytest.fixture
def watched() -> Iterator[list[tuple[str, object]]]:
    """What the block connects to, looks up, or opens under /etc."""
    _seen.clear()
    _watching[0] = True
    yield _seen
    _watching[0] = False


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out(api: TestClient, studio: Studio, watched: list, path: str):
    """In the place of every id of every route, shown or hidden, and as a whole address."""
    routes = [(method, url.replace("260101-000000-aaaaaa", path).replace("0" * 64, path)) for method, url in every_route(api.app)]
    wild = [("GET", address) for address in (f"/{path}", f"{V1}/{path}", f"/media/{path}", f"{V1}/jobs/{path}/pictures/{path}")]
    for method, address in [*(route for route in routes if path in route[1]), *wild]:
        answer = api.request(method, address)
        assert answer.status_code in (404, 405, 422), (method, address, answer.status_code, answer.text[:200])
        assert "root:" not in answer.text and "SQLite format" not in answer.text
    assert watched == []


@pytest.mark.parametrize("text", [*ADDRESSES, *PATHS[:2]])
def test_no_address_is_fetched_and_no_file_is_named(api: TestClient, studio: Studio, watched: list, text: str):
    adapter = adapter_item(studio).id
    plan = {"prompt": "a cat", "entries": [{"adapter": adapter}]}
    refused = [
        ("/generate", {"prompts": ["a"], "base": text}),
        ("/generate", {"prompts": ["a"], "adapters": [{"adapter": text}]}),
        ("/generate", {"prompts": ["a"], "scheduler": text}),
        ("/generate", {"prompts": ["a"], "output_dir": text}),
        ("/generate", {"prompts": ["a"], "submit": {"device": text}}),
        ("/generate", {"prompts": ["a"], "submit": {"needs": [text]}}),
        ("/generate", {"prompts": ["a"], "submit": {"owner": text}}),
        ("/stylize", {"content": {"adapter": text}}),
        ("/compose", {"plan": {**plan, "base": text}}),
        ("/compose", {"plan": {"prompt": "a", "entries": [{"adapter": text}]}}),
        ("/compose", {"plan": {"prompt": "a", "entries": [{"adapter": adapter, "region": {"mask": text}}]}}),
        ("/compose", {"plan": {**plan, "strategy": {"name": text}}}),
        ("/compare", {"plan": plan, "scorer": text}),
        ("/compare", {"plan": plan, "strategies": [text]}),
        ("/train", {"concept": text}),
        ("/train", {"concept": adapter, "settings": {"model": {"base": text}}}),
        ("/train", {"concept": adapter, "settings": {"concept": {"images": text}}}),
        ("/batches", {"document": {"jobs": [{"prompt": "a", "base": text}]}}),
        ("/batches", {"document": {"jobs": [{"prompt": "a", "adapters": [text]}]}}),
        ("/batches", {"document": {"jobs": [{"plan": text}]}}),
        ("/batches", {"document": {"jobs": ["a __b__"], "wildcards_dir": text}}),
        ("/batches", {"document": {"jobs": [{"method": "dreambooth-lora", "concept.images": text}]}}),
        ("/upload/plan", {"plan": {**plan, "base": text}}),
        ("/upload/adapter", {"file": text}),
        ("/upload/picture", {"file": text}),
    ]
    for path, body in refused:
        answer = api.post(V1 + path, json=body)
        assert answer.status_code == 422, (path, body, answer.status_code, answer.text)
    assert api.post(f"{V1}/upload/picture", data={"file": text}).status_code == 422
    assert studio.jobs() == []
    # As words they are only words.
    assert api.post(f"{V1}/generate", json={"prompts": [text], "negative_prompt": text}).status_code == 202
    assert api.patch(f"{V1}/library/{adapter}", json={"notes": text}).status_code == 200
    assert watched == []


def test_the_watch_sees_what_it_is_for(watched: list, tmp_path: Path):
    """A detector that sees nothing would let everything above pass."""
    import socket

    with socket.socket() as one:
        one.connect_ex(("127.0.0.1", 9))
    Path("/etc/hostname").exists()
    with open("/etc/passwd") as file:
        file.read(1)
    assert [event for event, _ in watched] == ["socket.connect", "open"]
