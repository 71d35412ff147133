"""What the page's server refuses: the probes that gradio was measured with, against our application."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import httpx
import pytest
from PIL import Image

from studio.pipelines.errors import UserError
from studio.service import GenerateSpec
from studio.ui.pages import PAGES
from studio.ui.proofs.serving import Served
from studio.ui.samples import sample_photos
from studio.ui.server import create_app
from studio.ui.settings import UiSettings

API = "/gradio_api"


@pytest.fixture(scope="module")
def client(served: Served):
    with httpx.Client(base_url=served.address, timeout=60) as client:
        yield client


@pytest.mark.parametrize("path", [page.path for page in PAGES])
def test_every_page_is_there_with_headers_that_keep_the_browser_here(client: httpx.Client, path: str):
    answer = client.get(f"/{path}")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy and "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"


def test_api_and_page_are_one_server(client: httpx.Client):
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/api/v1/jobs").json()["jobs"] == []


@pytest.mark.parametrize("path", ["/openapi.json", "/docs", "/monitoring", f"{API}/monitoring"])
def test_what_nobody_asked_for_is_not_there(client: httpx.Client, path: str):
    assert client.get(path).status_code in (403, 404)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../../../../etc/passwd",
        str(Path(__file__)),
        "pyproject.toml",
        "http://127.0.0.1:1/",
        "https://example.com/x",
    ],
)
def test_no_file_outside_is_given_out(client: httpx.Client, served: Served, name: str):
    assert client.get(f"{API}/file={name}", follow_redirects=False).status_code in (400, 403, 404)
    assert client.get(f"{API}/file={served.studio.home.jobs_database}").status_code in (403, 404)


@pytest.mark.parametrize(
    "path", ["/media/items/..%2F..%2Fetc/small", "/media/outputs/x/../../etc/passwd", "/media/drafts/0000000000000000/..%2Fx/now"]
)
def test_our_own_routes_stay_inside_their_folders(client: httpx.Client, path: str):
    assert client.get(path).status_code in (404, 422)


def test_pictures_of_a_job_are_given_and_links_out_of_it_are_not(client: httpx.Client, served: Served, tmp_path):
    job = served.studio.generate(GenerateSpec(prompts=("a red cat",)))
    folder = served.studio.request(job.id).output_dir
    folder.mkdir(parents=True)
    Image.new("RGB", (600, 400)).save(folder / "a.png")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    (folder / "b.png").symlink_to(secret)
    (folder / "c.html").write_text("<script>1</script>")
    small = client.get(f"/media/outputs/{job.id}/a.png")
    assert small.headers["content-type"] == "image/webp" and small.status_code == 200
    assert client.get(f"/media/outputs/{job.id}/b.png").status_code == 404
    assert client.get(f"/media/outputs/{job.id}/c.html").status_code == 404
    report = client.get(f"/media/reports/{job.id}/c.html")
    assert report.status_code == 200 and "default-src 'none'" in report.headers["content-security-policy"]


def test_a_bomb_is_no_thumbnail(client: httpx.Client, served: Served):
    job = served.studio.generate(GenerateSpec(prompts=("a red cat",)))
    folder = served.studio.request(job.id).output_dir
    folder.mkdir(parents=True)
    Image.new("1", (12_000, 12_000)).save(folder / "bomb.png")
    assert client.get(f"/media/outputs/{job.id}/bomb.png").status_code == 415


def test_other_names_and_other_sites_are_refused(client: httpx.Client, served: Served):
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    body = {"data": [], "fn_index": 0, "session_hash": "x"}
    for path in (f"{API}/run/predict", f"{API}/queue/join", f"{API}/call/create"):
        answer = client.post(path, json=body, headers={"Origin": "https://evil.example"})
        assert answer.status_code == 403, path
    assert "access-control-allow-origin" not in client.options("/", headers={"Origin": "https://evil.example"}).headers


def test_uploads_are_named_harmlessly_and_limited(client: httpx.Client, served: Served):
    answer = client.post(f"{API}/upload", files={"files": ("../../<b>x.png", b"12345")})
    assert answer.status_code == 200
    (path,) = answer.json()
    assert ".." not in path and "<" not in path and Path(path).is_absolute()
    assert not Path(path).is_relative_to(served.studio.home.root)


def test_files_that_were_not_uploaded_are_no_input(client: httpx.Client):
    for path in ("/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/x.png"):
        value = {"path": path, "meta": {"_type": "gradio.FileData"}}
        started = client.post(f"{API}/call/bring_in", json={"data": [[value]]})
        if started.status_code != 200:
            continue
        event = client.get(f"{API}/call/bring_in/{started.json()['event_id']}").text
        assert "event: error" in event and "root:" not in event, path


def test_private_handlers_do_what_every_handler_does_and_nothing_more(client: httpx.Client, served: Served):
    """They can be called by whoever is let in (visibility is no access control), so they check what they are given."""
    config = client.get("/config").json()
    assert config["show_error"] is False if "show_error" in config else True
    names = {one["api_name"]: one["api_visibility"] for one in config["dependencies"] if one["api_name"]}
    public = {name for name, visibility in names.items() if visibility == "public"}
    assert public == {"train", "create", "compose", "stylize", "batch", "bring_in", "export"}


def test_a_page_for_other_machines_needs_a_login(served: Served):
    with pytest.raises(UserError, match="needs a login"):
        create_app(served.studio, UiSettings(host="0.0.0.0"))


def test_pages_load_no_torch():
    import subprocess

    code = "import sys, studio.ui.server; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_documented_names_of_the_api_train_create_and_compose(served: Served, tmp_path):
    from gradio_client import Client, handle_file

    client = Client(served.address, verbose=False, analytics_enabled=False, download_files=str(tmp_path))
    photos = [handle_file(str(path)) for path in sample_photos("cat")]
    form = {"draft_id": None, "noun": "cat", "token": "ohwx", "goal": "thing", "effort": 1, "base": "embedded", "method": ""}
    form |= {"steps": 20, "rank": 0, "learning_rate": 0, "more": ""}
    job_id, said = client.predict(files=photos, **form, api_name="/train")
    job = served.studio.job(job_id)
    assert (job.kind, job.state) == ("train", "queued"), said
    spec = served.studio.request(job_id).spec
    assert spec.settings["schedule"]["steps"] == 20
    assert served.studio.item(job.title.split(": ")[-1], "concept").facts["num_photos"] == 5
    refused, said = client.predict(files=[], **form, api_name="/train")
    assert refused == "" and "no photos" in said

    job_id, _ = client.predict("a red cat", "", [], 7, True, 2, 4, 0, 0, 0, "", "embedded", api_name="/create")
    spec = served.studio.request(job_id).spec
    assert (spec.prompts, spec.seed, spec.num_images, spec.steps) == (("a red cat",), 7, 2, 4)
    refused, said = client.predict(
        "a", "", [{"id": "f" * 64, "on": True}], 7, True, 1, 4, 0, 0, 0, "", "embedded", api_name="/create"
    )
    assert refused == "" and "no adapter" in said

    job_id, said = client.predict("a red cat", "", [], {}, {}, "merge", 1, 7, 4, api_name="/compose")
    assert served.studio.job(job_id).kind == "compose", said
    refused, said = client.predict(" ", "", [], {}, {}, "merge", 1, 7, 4, api_name="/compose")
    assert refused == "" and "prompt" in json.dumps(said)
