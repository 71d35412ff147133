"""Jobs over HTTP: handed in once, listed by pages, watched from where one left off, changed, and told without paths."""

from __future__ import annotations

import json
from pathlib import Path

from starlette.testclient import TestClient

from studio.service import BatchSpec, GenerateSpec, Studio
from tests.api.conftest import V1, adapter_item, counter_of, png, problem


def ask(api: TestClient, path: str = "/generate", key: str | None = None, **values) -> object:
    headers = {} if key is None else {"Idempotency-Key": key}
    return api.post(V1 + path, json={"prompts": ["a cat"], **values} if path == "/generate" else values, headers=headers)


def test_an_answer_comes_at_once_and_the_job_is_the_studios(api: TestClient, studio: Studio):
    item = adapter_item(studio)
    answer = ask(api, adapters=[{"adapter": item.id, "strength": 0.5}], seed=3, submit={"priority": -2, "title": "mine"})
    assert answer.status_code == 202
    job = studio.job(answer.json()["id"])
    assert (job.kind, job.priority, job.title, job.owner) == ("generate", -2, "mine", "")
    spec = studio.request(job.id).spec
    assert spec.adapters[0].sha256 == item.id and spec.adapters[0].strength == 0.5 and spec.seed == 3
    assert api.get(f"{V1}/jobs/{job.id}").json()["request"]["adapters"] == [
        {"adapter": item.id, "strength": 0.5, "sha256": item.id}
    ]


def test_the_same_key_is_done_once(api: TestClient, studio: Studio):
    first, second = ask(api, key="k"), ask(api, key="k")
    assert second.json() == first.json() and second.headers["Idempotency-Replayed"] == "true"
    assert len(studio.jobs()) == 1
    problem(ask(api, key="k", seed=5), 422)
    refused = ask(api, key="again", adapters=[{"adapter": "0" * 64}])
    problem(refused, 422)
    assert ask(api, key="again").status_code == 202  # nothing had been done: the key is free
    assert ask(api).json()["id"] != ask(api).json()["id"]
    problem(ask(api, key="not allowed"), 422)


def test_an_answer_that_was_lost_is_given_again(api: TestClient, studio: Studio):
    """The process died after the job was handed in and before its answer was noted: the same job, not a second one."""
    first = ask(api, key="k").json()
    database = counter_of(api.app).access.database
    with database.write() as connection:
        connection.execute("UPDATE answers SET status = NULL, body = NULL, created = created - 3000")
    assert ask(api, key="k").json()["id"] == first["id"]
    with database.write() as connection:
        connection.execute("DELETE FROM answers")  # a day later
    assert ask(api, key="k").json()["id"] == first["id"]
    with database.write() as connection:
        connection.execute("DELETE FROM answers")
    assert ask(api, key="k", seed=5).json()["id"] != first["id"]
    with database.write() as connection:
        connection.execute("UPDATE answers SET status = NULL, body = NULL")
    assert problem(ask(api, key="k", seed=5), 409)["detail"].startswith("The first request")


def test_lists_go_page_by_page(api: TestClient, studio: Studio):
    ids = [ask(api, prompts=[f"cat {n}"]).json()["id"] for n in range(7)]
    seen, cursor = [], None
    while True:
        page = api.get(f"{V1}/jobs", params={"limit": 3, **({"cursor": cursor} if cursor else {})}).json()
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == ids[::-1]
    api.post(f"{V1}/jobs/{ids[0]}/cancel")
    assert [job["id"] for job in api.get(f"{V1}/jobs", params={"state": "canceled"}).json()["jobs"]] == [ids[0]]
    for cursor in ("!", "bmFu", "aW5m", "é", "A" * 100):
        problem(api.get(f"{V1}/jobs", params={"cursor": cursor}), 422)


def test_changing_ones_mind(api: TestClient, studio: Studio):
    first, second = (ask(api).json()["id"] for _ in range(2))
    assert api.post(f"{V1}/jobs/{second}/move", json={"before": first}).status_code == 200
    assert api.get(f"{V1}/queue").json()["waiting"] == [second, first]
    assert api.post(f"{V1}/jobs/{first}/pause").json()["held"] is True
    assert api.post(f"{V1}/jobs/{first}/resume").json()["held"] is False
    problem(api.post(f"{V1}/jobs/{first}/resume"), 409)
    problem(api.post(f"{V1}/jobs/{first}/retry"), 409)
    problem(api.post(f"{V1}/jobs/{first}/wish", json={"what": "save"}), 409)
    problem(api.post(f"{V1}/jobs/{first}/move", json={}), 422)
    assert api.post(f"{V1}/jobs/{first}/cancel").json()["state"] == "canceled"
    assert api.post(f"{V1}/jobs/{first}/cancel").json()["state"] == "canceled"
    assert api.post(f"{V1}/jobs/{first}/retry").json()["state"] == "queued"
    assert api.post(f"{V1}/queue/pause").json()["paused"] is True and studio.store.is_paused
    assert api.post(f"{V1}/queue/resume").json()["paused"] is False
    problem(api.get(f"{V1}/jobs/260101-000000-aaaaaa"), 404)


def events(text: str) -> list[tuple[str | None, str, dict]]:
    found = []
    for block in text.replace("\r\n", "\n").strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


def test_events_are_taken_up_where_they_broke_off(api: TestClient, studio: Studio, tmp_path: Path):
    job_id = ask(api).json()["id"]
    folder, output = studio.store.folder(job_id), studio.home.outputs / job_id
    output.mkdir()
    for number in range(2):
        (output / f"{number}.png").write_bytes(png(colour=number))
        folder.add_event("picture", path=str(output / f"{number}.png"))
    folder.add_event("process", pid=123, host="here", device="cpu")
    folder.add_event("message", text=f"wrote {output}/0.png")
    studio.cancel(job_id)
    with api.stream("GET", f"{V1}/jobs/{job_id}/events") as answer:  # it follows until the job's end, and ends then
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = events("".join(answer.iter_text()))
    assert [(each[0], each[1]) for each in told] == [
        ("1", "state"),
        ("2", "picture"),
        ("3", "picture"),
        ("4", "process"),
        ("5", "message"),
        ("6", "state"),
        (None, "end"),
    ]
    assert [each[2].get("index") for each in told[1:3]] == [0, 1]
    assert "pid" not in told[3][2] and told[4][2]["text"] == "wrote 0.png"
    assert told[-1][2] == {"state": "canceled"}
    later = events(api.get(f"{V1}/jobs/{job_id}/events", headers={"Last-Event-ID": "2"}).text)
    assert [each[0] for each in later] == ["3", "4", "5", "6", None] and later[0][2]["index"] == 1
    problem(api.get(f"{V1}/jobs/{job_id}/events", headers={"Last-Event-ID": "../x"}), 422)


def test_pictures_are_numbers_and_stay_in_the_jobs_folder(api: TestClient, studio: Studio, tmp_path: Path):
    job_id = ask(api).json()["id"]
    folder, output = studio.store.folder(job_id), studio.home.outputs / job_id
    output.mkdir()
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    (output / "a.png").write_bytes(png())
    (output / "link.png").symlink_to(secret)
    for path in (output / "a.png", output / "link.png", output / "gone.png", secret, studio.store.folder(job_id).job_json):
        folder.add_event("picture", path=str(path))
    links = api.get(f"{V1}/jobs/{job_id}/pictures").json()["pictures"]
    assert [link["name"] for link in links] == ["a.png", "link.png", "gone.png", "secret.png", "job.json"]
    shown = api.get(links[0]["url"])
    assert shown.content == png() and shown.headers["content-type"] == "image/png"
    for link in [*links[1:], {"url": f"{V1}/jobs/{job_id}/pictures/99"}]:
        problem(api.get(link["url"]), 404)


def test_nothing_tells_a_path(api: TestClient, studio: Studio, tmp_path: Path):
    batch = tmp_path / "many.txt"
    batch.write_text("a cat\n")
    job_id = studio.batch(BatchSpec(file=str(batch))).id
    folder = studio.store.folder(job_id)
    folder.log.write_text(f'File "{tmp_path}/x y/thing.py", in {studio.home.root}/jobs\n')
    folder.write_result(1, "failed", facts={"report": str(tmp_path / "report.html"), "notes": [f"see {tmp_path}/a.png, too"]})
    with studio.store.database.write() as connection:
        connection.execute("UPDATE jobs SET state = 'failed', error = ? WHERE id = ?", (f"{tmp_path}/a.png: is empty", job_id))
    texts = [api.get(f"{V1}{path}").text for path in ("/jobs", f"/jobs/{job_id}", f"/jobs/{job_id}/log")]
    assert all(str(tmp_path.parent) not in text and "/tmp" not in text for text in texts)
    values = api.get(f"{V1}/jobs/{job_id}").json()
    assert values["title"] == "many.txt" and values["error"] == "a.png: is empty"
    assert values["facts"] == {"report": "report.html", "notes": ["see a.png, too"]}
    slashed = ask(api, prompts=["/imagine a cat and/or a dog"]).json()
    assert slashed["title"] == "/imagine a cat and/or a dog"
    assert api.get(f"{V1}/jobs/{slashed['id']}").json()["request"]["prompts"] == ["/imagine a cat and/or a dog"]


def test_seeds_are_drawn_when_it_is_handed_in(api: TestClient, studio: Studio):
    spec = studio.request(ask(api).json()["id"]).spec
    assert isinstance(spec, GenerateSpec) and spec.seed is not None
