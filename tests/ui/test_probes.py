"""The probes that gradio was measured with, against page and API in one application that asks for a login."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from studio.api.access import Access
from studio.service import Studio
from studio.ui.server import create_app
from studio.ui.settings import UiSettings

API = "/gradio_api"
PAGE_NAMES = ("create", "train", "bring_in", "look", "tick", "do", "keep")
WRONG = 40


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with Studio(tmp_path_factory.mktemp("home")) as opened:
        yield opened


@pytest.fixture(scope="module")
def app(studio: Studio) -> FastAPI:
    async def made() -> FastAPI:  # gradio opens event loops of its own, and leaves them open, where none is running
        return create_app(studio, UiSettings(login=True, names=("studio.example",), max_upload="1kb", worker=False))

    return asyncio.run(made())


@pytest.fixture
def nobody(app: FastAPI) -> TestClient:
    return TestClient(app, base_url="http://studio.example", follow_redirects=False)


@pytest.fixture
def anna(app: FastAPI, studio: Studio) -> TestClient:
    """Somebody who has logged in, with a token that may use the page and the API."""
    with Access(studio.home) as access:
        _, token = access.create(f"anna {time.monotonic_ns()}", owner="anna", scopes=("page", "read", "draw", "library"))
    client = TestClient(app, base_url="http://studio.example", follow_redirects=False)
    answer = client.post("/login", data={"token": token})
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    return client


@pytest.mark.parametrize(
    "path",
    ["/", "/create", "/config", f"{API}/info", f"{API}/app_id", f"{API}/openapi.json", "/openapi.json", "/monitoring",
     f"{API}/file=/etc/passwd", "/media/samples/cat/0", "/api/v1/jobs", "/api/v1/openapi.json"],
)  # fmt: skip
def test_nobody_sees_anything(nobody: TestClient, path: str):
    answer = nobody.get(path)
    assert answer.status_code in (303, 307, 401, 403, 404), path
    assert answer.status_code not in (303, 307) or answer.headers["location"].startswith("/login")


@pytest.mark.parametrize("name", PAGE_NAMES)
def test_nobody_runs_a_handler_whether_it_is_shown_or_not(nobody: TestClient, studio: Studio, name: str):
    for path in (f"{API}/call/{name}", f"{API}/run/{name}", f"{API}/queue/join", f"{API}/upload"):
        assert nobody.post(path, json={"data": [], "fn_index": 0, "session_hash": "x"}).status_code in (401, 403), path
    assert studio.jobs() == []


def test_one_login_opens_page_and_api(anna: TestClient):
    assert anna.get("/").status_code == anna.get("/api/v1/jobs").status_code == anna.get("/config").status_code == 200
    assert anna.get("/openapi.json").status_code in (403, 404)
    anna.post("/logout")
    assert anna.get("/config").status_code in (303, 401, 403)


def test_other_sites_and_other_names_do_nothing_with_somebodys_cookie(anna: TestClient, studio: Studio):
    body = {"data": ["a red cat"], "session_hash": "x"}
    foreign = {"Origin": "https://evil.example"}
    for path in (f"{API}/call/create", f"{API}/run/create", "/api/v1/jobs/generate"):
        assert anna.post(path, json=body, headers=foreign).status_code == 403, path
        assert anna.post(path, content="{}", headers=foreign | {"Content-Type": "text/plain"}).status_code in (403, 415, 422)
    preflight = anna.options(f"{API}/call/create", headers=foreign | {"Access-Control-Request-Method": "POST"})
    assert "access-control-allow-origin" not in preflight.headers
    assert anna.get("/config", headers={"Host": "evil.example"}).status_code == 400
    assert studio.jobs() == []


def test_what_is_too_large_is_not_taken(anna: TestClient):
    files = {"files": ("large.png", b"x" * 20_000)}
    assert anna.post(f"{API}/upload", files=files).status_code == 413


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../etc/passwd", "jobs.sqlite3", "http://127.0.0.1:1/x", "file:///etc/passwd"]
)
def test_files_outside_stay_outside_for_those_inside(anna: TestClient, studio: Studio, name: str):
    path = str(studio.home.jobs_database) if name == "jobs.sqlite3" else name
    answer = anna.get(f"{API}/file={path}")
    assert answer.status_code in (400, 403, 404) and "root:" not in answer.text


def test_guessing_tokens_is_slowed_down(nobody: TestClient):
    codes = [nobody.post("/login", data={"token": f"studio_{number:040d}"}).status_code for number in range(WRONG)]
    assert codes[0] == 401 and codes[-1] == 429, "the last in this file: it locks this address out for a while"
