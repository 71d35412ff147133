"""Files that are read by what imports torch: adapters and pictures, real and hostile ones."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
from safetensors.numpy import save
from starlette.testclient import TestClient

from studio.service import Studio
from tests.api.conftest import V1, png, problem

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"

PAIR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def adapter(**metadata: str) -> bytes:
    """A LoRA for Stable Diffusion 1.5 in PEFT's names, as diffusers writes them."""
    generator = np.random.default_rng(0)
    down, up = (generator.normal(size=shape).astype(np.float32) for shape in ((2, 1280), (1280, 2)))
    return save({f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}, metadata=metadata or None)


def header(values: object, body: bytes = b"") -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + body


def send(api: TestClient, content: bytes, name: str = "rex.safetensors", **values: object) -> object:
    return api.post(f"{V1}/upload/adapter", files={"file": (name, content)}, data=values)


def test_an_adapter_is_sent_used_and_sent_back(api: TestClient, studio: Studio):
    content = adapter(name="<img src=x onerror=alert(1)>")
    answer = send(api, content, name="../../rex.safetensors", tags=["dog"])
    assert answer.status_code == 201, answer.text
    item = answer.json()["item"]
    assert (item["kind"], item["name"], item["rank"], item["tags"]) == ("adapter", "rex", 2, ["dog"])
    assert api.get(f"{V1}/library/{item['id']}/file").content == content
    assert send(api, content).json()["new"] is False
    asked = api.post(f"{V1}/generate", json={"prompts": ["a dog"], "adapters": [{"adapter": item["id"]}]})
    assert asked.status_code == 202
    assert studio.request(asked.json()["id"]).spec.adapters[0].sha256 == item["id"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pickle.dumps({"a": 1}),
        b"PK\x03\x04" + bytes(100),
        struct.pack("<Q", 2**62) + b"{}",
        adapter()[:-10],
        header({"a": PAIR, "b": {**PAIR, "data_offsets": [4, 12]}}, bytes(12)),
        header({"a": PAIR}, bytes(8)),
        header({}),
        b"<script>alert(1)</script>",
    ],
)  # fmt: skip
def test_what_is_no_adapter_is_refused_with_its_name(api: TestClient, studio: Studio, content: bytes):
    body = problem(send(api, content), 422)
    assert "rex" in body["detail"]
    assert studio.items().items == () and list((studio.home.root / "uploads").iterdir()) == []
    problem(send(api, adapter(), name="rex.ckpt"), 415)
    problem(send(api, adapter(), name="rex.pt"), 415)


def test_a_picture_is_kept_as_it_was(api: TestClient):
    content = png(48)
    answer = api.post(f"{V1}/upload/picture", files={"file": ("a.png", content)}, data={"name": "mask"})
    assert answer.status_code == 201, answer.text
    item = answer.json()["item"]
    assert (item["name"], item["facts"]["width"]) == ("mask", 48)
    assert api.get(f"{V1}/library/{item['id']}/file").content == content
    problem(api.post(f"{V1}/upload/picture", files={"file": ("a.png", b"<svg/>")}), 422)
    problem(api.post(f"{V1}/upload/picture", files={"file": ("a.gif", content)}), 415)
    plan = {"prompt": "a", "entries": [], "strategy": "merge"}
    assert api.post(f"{V1}/compose", json={"plan": plan}).status_code == 202
