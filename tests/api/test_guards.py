"""Who is let in: hosts, origins, tokens, scopes, logins, rates, headers; every endpoint, those not shown too."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient, WebSocketDenialResponse

from studio.api.access import Access
from studio.api.app import create_app
from studio.api.guards import host_name, is_foreign
from studio.api.settings import ApiSettings, Limits, needs_login
from studio.pipelines.errors import MissingFileError, UserError
from studio.service import Studio
from tests.api.conftest import V1, client, problem

OPEN = {"/healthz", "/readyz", "/login"}
JOB, ITEM = "260101-000000-aaaaaa", "0" * 64


def every_route(app: FastAPI) -> list[tuple[str, str]]:
    """Methods and paths, of the application under /api/v1 too, whether or not they are described."""
    found = []
    for route in app.routes:
        inside = route.original_router if hasattr(route, "original_router") else getattr(route, "app", None)
        if inside is not None and hasattr(inside, "routes"):
            found += [(method, getattr(route, "path", "") + path) for method, path in every_route(inside)]
        else:
            path = route.path.format(job_id=JOB, item_id=ITEM, index=0)
            found += [(method, path) for method in sorted(route.methods)]
    return found


def test_nothing_is_open_without_a_token_but_what_is_named(guarded: FastAPI):
    """Also what is in no description, and what there is not: the guard stands before the routes."""
    api = client(guarded)
    routes = every_route(guarded)
    assert len(routes) > 35
    for method, path in [*routes, ("GET", f"{V1}/nothing"), ("POST", "/gradio_api/call/hidden"), ("GET", "/openapi.json")]:
        answer = api.request(method, path)
        kept_out = answer.status_code == 401 and answer.headers.get("www-authenticate", "").startswith("Bearer")
        assert kept_out != (path in OPEN), (method, path, answer.status_code)
    with pytest.raises(WebSocketDenialResponse) as denied, api.websocket_connect("ws://localhost/anything"):
        pass
    assert denied.value.status_code == 401


@pytest.mark.parametrize(
    "path", ["/healthz/../api/v1/jobs", "/healthz%2f..%2fapi/v1/jobs", "//api/v1/jobs", "/API/V1/jobs", "/login/"]
)
def test_open_paths_open_nothing_else(guarded: FastAPI, path: str):
    assert client(guarded).get(path).status_code in (401, 404)


def test_a_token_opens_what_its_scopes_say(of: Callable[..., TestClient]):
    reader, drawer, boss = of("anna", "read"), of("ben", "draw"), of("boss", "admin")
    ask = {"prompts": ["a cat"]}
    assert reader.get(f"{V1}/jobs").status_code == 200
    problem(reader.post(f"{V1}/generate", json=ask), 403)
    assert drawer.post(f"{V1}/generate", json=ask).status_code == 202
    problem(drawer.get(f"{V1}/jobs"), 403)
    problem(drawer.post(f"{V1}/train", json={"concept": ITEM}), 403)
    problem(drawer.post(f"{V1}/generate", json={**ask, "submit": {"priority": 1}}), 403)
    for admin_only in ("/queue/pause", "/queue/resume"):
        problem(reader.post(V1 + admin_only), 403)
    assert reader.get("/metrics").status_code == 403 and boss.get("/metrics").status_code == 200
    assert boss.post(f"{V1}/generate", json={**ask, "submit": {"priority": 1}}).status_code == 202
    assert reader.get("/library").status_code == 403  # the page's scope is one of its own
    assert of("eve", "page").get("/anything").status_code == 404


def test_tokens_are_hashed_revocable_and_end(access: Access, guarded: FastAPI, studio: Studio):
    token, text = access.create("anna", scopes=("read",))
    api = client(guarded, text)
    assert api.get(f"{V1}/jobs").status_code == 200
    content = b"".join(path.read_bytes() for path in studio.home.root.glob("access.sqlite3*"))
    assert text.rpartition("_")[2].encode() not in content and token.id.encode() in content
    assert (studio.home.root / "access.sqlite3").stat().st_mode & 0o077 == 0
    assert access.tokens()[0].used is not None
    with pytest.raises(UserError, match="already"):
        access.create("anna")
    assert access.revoke("anna").revoked is not None
    problem(api.get(f"{V1}/jobs"), 401)
    with pytest.raises(MissingFileError, match="no token"):
        access.revoke("anna")
    _, short = access.create("ben", days=1e-9)
    time.sleep(0.001)
    problem(client(guarded, short).get(f"{V1}/jobs"), 401)
    for wrong in ("x" * 200, "", "../x"):
        with pytest.raises(UserError):
            access.create(wrong)
    with pytest.raises(UserError, match="no scope"):
        access.create("eve", scopes=("root",))


@pytest.mark.parametrize("text", ["", "x", "st_", "st_aaaaaaaa_" + "A" * 43, "' OR 1=1 --", "st_%_%", "\x00", "é", "A" * 5000])
def test_wrong_tokens_are_refused_even_on_this_machine(api: TestClient, text: str):
    """Who brings a token wants to be that person, and is not made the local one by a slip."""
    try:
        header = f"Bearer {text}".encode("latin-1")
    except UnicodeEncodeError:
        header = b"Bearer x"
    problem(api.get(f"{V1}/jobs", headers={"Authorization": header}), 401)


def test_guessing_is_slowed_down(studio: Studio, access: Access):
    limits = Limits(failed_logins="3/minute", failed_logins_in_all="6/minute")
    app = create_app(studio, ApiSettings(login=True, limits=limits))
    token, text = access.create("anna", scopes=("page",))
    guess = f"st_{token.id}_{'A' * 43}"
    answers = [client(app, guess).get(f"{V1}/jobs") for _ in range(5)]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 61
    assert client(app).post("/login", data={"token": text}).status_code == 429  # the same token's guesses count everywhere
    codes = [client(app).post("/login", data={"token": f"guess {n}"}).status_code for n in range(5)]
    assert codes == [401, 401, 401, 429, 429]
    assert client(app).get("/healthz").status_code == 200


def test_a_login_is_a_cookie_that_ends_with_its_token(guarded: FastAPI, access: Access):
    _, text = access.create("anna", scopes=("page", "read"))
    browser = client(guarded)
    answer = browser.get("/", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    page = browser.get("/login")
    assert (
        page.status_code == 200
        and "<script" not in page.text
        and "frame-ancestors 'none'" in page.headers["content-security-policy"]
    )
    assert browser.post("/login", data={"token": "x"}).status_code == 401
    answer = browser.post("/login?next=//evil.example", data={"token": f" {text} "})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and text.lower() not in cookie
    assert browser.get(f"{V1}/jobs").status_code == 200 and browser.get("/").status_code == 404
    second = client(guarded)
    second.post("/login", data={"token": text})
    assert browser.post("/logout").status_code == 303
    browser.cookies.clear()
    assert browser.get(f"{V1}/jobs").status_code == 401
    access.revoke("anna")
    assert second.get(f"{V1}/jobs").status_code == 401
    forged = client(guarded)
    forged.cookies.set("studio_session", "A" * 43)
    assert forged.get(f"{V1}/jobs").status_code == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "[::1", "localhost@evil.example"]
)
def test_names_of_others_are_not_served(api: TestClient, guarded: FastAPI, host: str):
    for one in (api, client(guarded)):
        answer = one.get("/healthz", headers={"Host": host})
        assert answer.status_code == 400 and answer.headers["x-content-type-options"] == "nosniff"
    problem(api.get(f"{V1}/jobs", headers={"Host": host}), 400)


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "[::1]:7860", "LOCALHOST", "studio.example"])
def test_names_of_ours_are_served(guarded: FastAPI, host: str):
    assert client(guarded).get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_others_change_nothing(api: TestClient, studio: Studio, headers: dict):
    ask = {"prompts": ["a cat"]}
    problem(api.post(f"{V1}/generate", json=ask, headers=headers), 403)
    assert api.post("/login", data={"token": "x"}, headers=headers).status_code == 403
    preflight = api.options(f"{V1}/generate", headers={**headers, "Access-Control-Request-Method": "POST"})
    assert "access-control-allow-origin" not in preflight.headers
    assert studio.jobs() == []
    assert api.post(f"{V1}/generate", json=ask, headers={"Origin": "http://localhost"}).status_code == 202


def test_a_form_of_another_site_is_no_request(api: TestClient, studio: Studio):
    """A form can send text/plain across sites without a preflight; it is not read as JSON."""
    answer = api.post(f"{V1}/generate", content=b'{"prompts": ["a cat"]}', headers={"content-type": "text/plain"})
    assert answer.status_code in (415, 422) and studio.jobs() == []


def test_every_answer_has_the_headers(api: TestClient):
    for path in ("/healthz", f"{V1}/jobs", f"{V1}/nothing", "/nothing", "/metrics"):
        headers = api.get(path).headers
        assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin" and "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers and "x-powered-by" not in headers


def test_too_many_requests_wait(studio: Studio):
    app = create_app(studio, ApiSettings(limits=Limits(reads="3/minute", streams=0)))
    api = client(app)
    assert [api.get(f"{V1}/jobs").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert int(api.get(f"{V1}/jobs").headers["retry-after"]) >= 1
    assert api.post(f"{V1}/generate", json={"prompts": ["a"]}).status_code == 202


def test_event_streams_are_counted(studio: Studio):
    api = client(create_app(studio, ApiSettings(limits=Limits(streams=0))))
    job = api.post(f"{V1}/generate", json={"prompts": ["a"]}).json()["id"]
    problem(api.get(f"{V1}/jobs/{job}/events"), 429)
    assert api.get(f"{V1}/jobs/{job}/events", params={"follow": False}).status_code == 200


def test_mistakes_of_ours_tell_a_number_and_no_trace(api: TestClient, studio: Studio, caplog: pytest.LogCaptureFixture):
    with studio.store.database.write() as connection:
        connection.execute("ALTER TABLE jobs RENAME TO lost")
    body = problem(api.get(f"{V1}/jobs"), 500)
    assert "sqlite" not in str(body).lower() and "lost" not in str(body)
    number = body["detail"].split()[4]
    assert number in caplog.text and any(
        record.exc_info and record.exc_info[0] is sqlite3.OperationalError for record in caplog.records
    )
    with studio.store.database.write() as connection:
        connection.execute("ALTER TABLE lost RENAME TO jobs")


def test_health_and_figures(api: TestClient, studio: Studio):
    assert api.get("/healthz").json() == {"status": "ok"}
    assert api.get("/readyz").json() == {"status": "ok", "wrong": []}
    api.post(f"{V1}/generate", json={"prompts": ["a"]})
    figures = api.get("/metrics").text
    assert 'studio_jobs{state="queued"} 1.0' in figures and "studio_workers 0.0" in figures
    assert 'studio_http_requests_total{method="POST",route="/generate",status="202"} 1.0' in figures
    assert list(studio.home.root.glob(".ready-*")) == []


def test_small_parts():
    assert host_name("[::1]:80") == "::1" and host_name("[::1") == "" and needs_login("0.0.0.0") and not needs_login("::1")
    from starlette.datastructures import Headers

    assert not is_foreign(Headers({"host": "a:1", "origin": "http://a:1"}))
