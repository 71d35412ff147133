"""A studio in an empty home behind the API, for this machine's person and for others with tokens; nothing of torch."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from studio.api.access import Access
from studio.api.app import api_of, create_app
from studio.api.desk import Counter
from studio.api.settings import ApiSettings, Limits
from studio.service import Item, Studio

V1 = "/api/v1"
MANY = "100000/minute"
GENEROUS = Limits(reads=MANY, writes=MANY, failed_logins=MANY, failed_logins_in_all=MANY)


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    with Studio(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def access(studio: Studio) -> Iterator[Access]:
    with Access(studio.home) as opened:
        yield opened


@pytest.fixture
def api(studio: Studio) -> TestClient:
    """This machine's person."""
    return client(create_app(studio, ApiSettings(limits=GENEROUS)))


@pytest.fixture
def guarded(studio: Studio) -> FastAPI:
    """The application as others reach it."""
    return create_app(studio, ApiSettings(login=True, names=("studio.example",), limits=GENEROUS))


@pytest.fixture
def of(guarded: FastAPI, access: Access) -> Callable[..., TestClient]:
    """A client with a token of its own: `of("anna", "read", "draw")`."""

    def make(name: str, *scopes: str) -> TestClient:
        _, text = access.create(
            f"{name} {time.monotonic_ns()}", owner=name, scopes=scopes or ("read", "draw", "train", "library")
        )
        return client(guarded, token=text)

    return make


def client(app: FastAPI, token: str | None = None) -> TestClient:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return TestClient(app, base_url="http://localhost", headers=headers, raise_server_exceptions=False, follow_redirects=False)


def counter_of(app: FastAPI) -> Counter:
    """What all routes of the application share."""
    return api_of(app).state.counter


def png(side: int = 32, colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (colour, 40, 90)).save(buffer, format="PNG")
    return buffer.getvalue()


def adapter_item(studio: Studio, name: str = "cat", owner: str = "") -> Item:
    """An adapter in the catalogue: what the API tells of it and hands on is its id and its file."""
    content = f"adapter {name} {owner}".encode()
    path = studio.home.library / "adapters" / f"{name}{owner}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    item = Item(
        id=digest,
        kind="adapter",
        name=name,
        path=path,
        num_bytes=len(content),
        added=time.time(),
        owner=owner,
        type="lora",
        rank=4,
    )
    return studio.library.catalogue.put(item)


def problem(answer: object, status: int) -> dict:
    """The body of a problem, which is one, and tells nothing of the machine."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status and body["type"] and body["title"] and body["detail"]
    assert "Traceback" not in answer.text and "/home" not in answer.text and ".py" not in answer.text
    return body
