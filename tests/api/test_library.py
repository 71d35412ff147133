"""The library over HTTP: what was sent is checked, kept under its hash, found, changed, sent back and thrown away."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image
from starlette.testclient import TestClient

from studio.api.app import create_app
from studio.api.problems import Problem
from studio.api.settings import MIB, ApiSettings, Limits
from studio.service import Studio, TrainSpec
from tests.api.conftest import V1, adapter_item, client, counter_of, png, problem


def photos(*names: str) -> list:
    return [("files", (name, png(colour=number), "image/png")) for number, name in enumerate(names)]


def send_concept(api: TestClient, *names: str, key: str | None = None, **values) -> object:
    headers = {} if key is None else {"Idempotency-Key": key}
    return api.post(f"{V1}/upload/concept", files=photos(*names), data={"class_noun": "cat", **values}, headers=headers)


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that says it has side × side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_photos_are_kept_and_trained_on_by_their_id(api: TestClient, studio: Studio):
    answer = send_concept(api, "one.png", "two.PNG", key="k", name="my cat", trigger="ohwx", tags=["pet", "home"])
    assert answer.status_code == 201, answer.text
    item = answer.json()["item"]
    assert (item["kind"], item["name"], item["class_noun"], item["tags"]) == ("concept", "my cat", "cat", ["pet", "home"])
    assert item["facts"]["num_photos"] == 2 and "path" not in item
    replayed = send_concept(api, "one.png", "two.PNG", key="k", name="my cat", trigger="ohwx", tags=["pet", "home"])
    assert replayed.headers["Idempotency-Replayed"] == "true"
    again = send_concept(api, "x.png", "y.png")  # the same photos under other names
    assert again.json() == {"item": item, "new": False}
    assert api.get(f"{V1}/library/{item['id']}/thumbnail").headers["content-type"] == "image/webp"
    problem(api.get(f"{V1}/library/{item['id']}/file"), 404)
    assert list((studio.home.root / "uploads").iterdir()) == []

    asked = api.post(f"{V1}/train", json={"concept": item["id"], "settings": {"schedule": {"steps": 10}}})
    assert asked.status_code == 202, asked.text
    spec = studio.request(asked.json()["id"]).spec
    assert isinstance(spec, TrainSpec) and spec.settings["concept"]["token"] == "ohwx"
    assert api.get(f"{V1}/jobs/{asked.json()['id']}").json()["request"]["settings"]["concept"]["images"] == item["id"]
    wrong = api.post(f"{V1}/train", json={"concept": item["id"], "settings": {"schedule": {"stepz": 10}}})
    assert "steps" in problem(wrong, 422)["detail"]


@pytest.mark.parametrize(
    "settings",
    [
        {"concept": {"images": "/etc"}},
        {"run": {"output_dir": "/tmp/x"}},
        {"data": {"cache_dir": "/tmp"}},
        {"model": {"base": "a/b"}},
    ],
)
def test_no_setting_of_a_training_names_a_file(api: TestClient, studio: Studio, settings: dict):
    item = send_concept(api, "one.png").json()["item"]
    problem(api.post(f"{V1}/train", json={"concept": item["id"], "settings": settings}), 422)
    assert studio.jobs() == []


def test_names_of_files_are_titles_and_nothing_else(api: TestClient, studio: Studio):
    names = [
        "../../../evil.png",
        "C:\\Windows\\con.png",
        "nul\x00.png",
        "a" * 300 + ".png",
        "\u202egnp.png",
        "<script>.png",
        ".png.png",
    ]
    for number, name in enumerate(names):
        body = api.post(f"{V1}/upload/concept", files=[("files", (name, png(colour=100 + number), "image/png"))])
        assert body.status_code == 201, (name, body.text)
    inside = studio.home.root.resolve()
    for item in studio.items().items:
        assert item.path.resolve().is_relative_to(inside / "library")
        assert all(path.name.isascii() and path.resolve().is_relative_to(inside) for path in item.path.iterdir())
    assert not list(inside.parent.rglob("evil*"))


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", 415),
        ("a.zip", b"PK\x03\x04", 415),
        ("a.html", b"<script>", 415),
        ("a", b"", 415),
        ("a.png ", png(), 415),
        ("a.png.", png(), 415),
        ("a.png", b"", 422),
        ("a.png", b"<svg/>", 422),
        ("a.png", b"GIF89a", 422),
        ("a.png", png()[:60], 422),
        ("a.png", bomb(12_000), 413),
        ("a.png", bomb(40_000), 413),
    ],
)
def test_photos_that_are_none_are_refused(api: TestClient, studio: Studio, name: str, content: bytes, status: int):
    body = problem(api.post(f"{V1}/upload/concept", files=[("files", (name, content, "image/png"))]), status)
    assert "photo-" not in body["detail"]  # it is told by the name under which it was sent
    assert studio.items().items == ()


def test_photos_of_odd_kinds_are_taken(api: TestClient):
    sent = []
    for mode in ("CMYK", "L", "RGB"):
        buffer = io.BytesIO()
        Image.new(mode, (40, 30)).save(buffer, format="JPEG")
        sent.append(("files", (f"{mode}.jpg", buffer.getvalue(), "text/html")))  # what the sender calls it counts for nothing
    sent.append(("files", ("RGB.txt", b"a photo of a cat", "text/plain")))
    answer = api.post(f"{V1}/upload/concept", files=sent)
    assert answer.status_code == 201, answer.text
    assert answer.json()["item"]["facts"]["num_photos"] == 3 and answer.json()["item"]["facts"]["num_captions"] == 1


def test_finding_and_changing(api: TestClient, studio: Studio):
    items = [adapter_item(studio, name) for name in ("red cat", "blue cat", "dog")]
    path = f"{V1}/library/{items[0].id}"
    changed = api.patch(path, json={"notes": "soft <b>", "favourite": True, "add_tags": ["pet"], "name": "my cat"}).json()
    assert (changed["notes"], changed["favourite"], changed["tags"], changed["name"]) == ("soft <b>", True, ["pet"], "my cat")
    for query, number in (({"words": "cat"}, 2), ({"tag": "pet"}, 1), ({"favourite": True}, 1), ({"type": "lora"}, 3)):
        assert len(api.get(f"{V1}/library", params=query).json()["items"]) == number, query
    for words in ("'; DROP TABLE items; --", '"', "_", "cat*", "\x00", "NEAR(a b)", "%"):
        assert api.get(f"{V1}/library", params={"words": words}).status_code == 200
    page = api.get(f"{V1}/library", params={"limit": 2}).json()
    rest = api.get(f"{V1}/library", params={"limit": 2, "cursor": page["next"]}).json()
    assert len(page["items"]) == 2 and len(rest["items"]) == 1 and rest["next"] is None
    problem(api.patch(path, json={"add_tags": [f"{n}" for n in range(100)]}), 422)
    problem(api.patch(path, json={"path": "/etc/passwd"}), 422)
    sent = api.get(f"{path}/file")
    assert sent.content == items[0].path.read_bytes()
    assert sent.headers["content-disposition"].startswith("attachment") and "sandbox" in sent.headers["content-security-policy"]


def test_trash_has_a_way_back(api: TestClient, studio: Studio):
    item = adapter_item(studio)
    path = f"{V1}/library/{item.id}"
    assert api.delete(path).json()["trashed"] is not None
    problem(api.delete(path), 409)
    problem(api.patch(path, json={"notes": "x"}), 409)
    problem(api.post(f"{V1}/generate", json={"prompts": ["a"], "adapters": [{"adapter": item.id}]}), 422)
    assert len(api.get(f"{V1}/library", params={"in_trash": True}).json()["items"]) == 1
    assert api.post(f"{path}/restore").json()["trashed"] is None and item.path.is_file()
    problem(api.post(f"{path}/restore"), 409)
    problem(api.get(f"{V1}/library/{'0' * 64}"), 404)


def test_plans_name_adapters_and_masks_by_id(api: TestClient, studio: Studio, tmp_path):
    cat, dog = adapter_item(studio, "cat"), adapter_item(studio, "dog")
    entries = [{"adapter": cat.id, "words": "cat"}, {"adapter": dog.id, "words": "dog", "region": {"box": [0, 0, 0.5, 1]}}]
    plan = {"prompt": "a cat and a dog", "entries": entries, "strategy": {"name": "regional"}, "num_images": 2}
    for path in ("/compose", "/compare", "/conflicts"):
        answer = api.post(V1 + path, json={"plan": plan})
        assert answer.status_code == 202, answer.text
        told = api.get(f"{V1}/jobs/{answer.json()['id']}").json()["request"]["plan"]["entries"]
        assert [entry["adapter"] for entry in told] == [cat.id, dog.id]
    kept = api.post(f"{V1}/upload/plan", json={"plan": plan, "name": "both"})
    assert kept.status_code == 201 and kept.json()["item"]["kind"] == "plan"
    for wrong in (
        {"entries": [{"adapter": str(cat.path)}]},
        {"entries": [{"adapter": cat.id, "region": {"mask": "/etc/passwd"}}]},
        {"entries": [{"adapter": cat.id, "region": {"mask": cat.id}}]},
        {"base": "../models"},
        {"entries": [{"adapter": cat.id, "words": "horse"}]},
        {"strategy": {"name": "merge", "deep": [[[[[[[[[[1]]]]]]]]]]}},
        {"strategy": {"name": "../merge"}},
        {"num_images": 5000},
    ):
        problem(api.post(f"{V1}/compose", json={"plan": {"prompt": "a cat", **wrong}}), 422)


def test_bodies_are_bounded_as_they_say_and_as_they_are(studio: Studio):
    limits = Limits(body_bytes=2000, upload_bytes=20_000, photos=2, upload_bytes_per_day=3 * MIB, pictures=10, waiting_jobs=2)
    api = client(create_app(studio, ApiSettings(limits=limits)))
    problem(api.post(f"{V1}/generate", json={"prompts": ["x" * 3000]}), 413)

    def pieces():
        yield from [b'{"prompts": ["', *[b"x" * 500] * 10, b'"]}']

    problem(api.post(f"{V1}/generate", content=pieces(), headers={"content-type": "application/json"}), 413)
    problem(api.post(f"{V1}/upload/concept", files=[("files", ("a.png", bytes(30_000), "image/png"))]), 413)
    problem(send_concept(api, "a.png", "b.png", "c.png"), 413)
    problem(api.post(f"{V1}/generate", json={"prompts": ["a"], "num_images": 11}), 422)
    for _ in range(2):
        assert api.post(f"{V1}/generate", json={"prompts": ["a"]}).status_code == 202
    assert problem(api.post(f"{V1}/generate", json={"prompts": ["a"]}), 429)["detail"].startswith("2 of your jobs")
    assert send_concept(api, "a.png").status_code == 201
    assert send_concept(api, "a.png").status_code == 201
    problem(send_concept(api, "a.png"), 429)  # a request counts for a MiB at least, and one was refused before
    again = client(create_app(studio, ApiSettings(limits=limits)))  # the process was begun anew
    wait = problem(send_concept(again, "a.png"), 429)
    assert "3 MiB" in wait["detail"]
    throttle = counter_of(again.app).throttle
    with pytest.raises(Problem):
        throttle.upload("zoe", 4 * MIB)
    throttle.upload("zoe", 3 * MIB)  # what was refused took nothing
    with pytest.raises(Problem):
        throttle.upload("zoe", 1)


def test_what_belongs_to_others_is_not_there(of: Callable[..., TestClient], studio: Studio):
    anna, ben, shared = of("anna"), of("ben"), adapter_item(studio, "shared")
    item = send_concept(anna, "one.png").json()["item"]
    job = anna.post(f"{V1}/generate", json={"prompts": ["secret words"]}).json()["id"]
    for path in (
        f"/library/{item['id']}",
        f"/library/{item['id']}/thumbnail",
        f"/jobs/{job}",
        f"/jobs/{job}/events",
        f"/jobs/{job}/log",
    ):
        assert anna.get(V1 + path, params={"follow": False}).status_code == 200
        problem(ben.get(V1 + path), 404)
    for action in ("cancel", "pause", "retry"):
        problem(ben.post(f"{V1}/jobs/{job}/{action}"), 404)
    problem(ben.delete(f"{V1}/library/{item['id']}"), 404)
    problem(ben.post(f"{V1}/train", json={"concept": item["id"]}), 422)
    problem(ben.post(f"{V1}/generate", json={"prompts": ["a"], "submit": {"needs": [job]}}), 404)
    problem(send_concept(ben, "one.png"), 409)
    assert ben.get(f"{V1}/jobs").json()["jobs"] == [] and ben.get(f"{V1}/queue").json()["waiting"] == []
    assert [each["name"] for each in ben.get(f"{V1}/library").json()["items"]] == ["shared"]
    problem(ben.patch(f"{V1}/library/{shared.id}", json={"notes": "mine"}), 403)
    assert ben.post(f"{V1}/generate", json={"prompts": ["a"], "adapters": [{"adapter": shared.id}]}).status_code == 202
    boss = of("boss", "admin")
    assert len(boss.get(f"{V1}/jobs").json()["jobs"]) == 2 and len(boss.get(f"{V1}/library").json()["items"]) == 2
