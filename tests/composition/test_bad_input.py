"""What people get wrong, through the command: one sentence that names the entry, exit code 2, nothing drawn; many adapters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from studio.cli.main import main
from studio.composition.strategies import STRATEGIES
from studio.pipelines.adapters import save_adapter
from studio.pipelines.base_model import BaseModel
from tests.support.scenes import compiled_for, drawn, kronecker, lora
from tests.support.tiny_bases import tiny_base

PROMPT = "a cat, a dog"
LEFT, RIGHT = {"box": [0, 0, 0.5, 1]}, {"box": [0.5, 0, 1, 1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base of Stable Diffusion's structure, and good and bad adapters."""
    root = tmp_path_factory.mktemp("bad")
    base = tiny_base("sd15", root / "base")
    other = tiny_base("sdxl", root / "sdxl")
    for seed, name in ((1, "cat"), (2, "dog")):
        save_adapter(lora(base, seed, targets={"unet": r".*attn.*"}), root / f"{name}.safetensors", "peft", dtype=torch.float32)
    foreign = lora(other, 3, targets={"unet": r".*attn.*"})
    save_adapter(foreign, root / "foreign.safetensors", "peft")
    save_file(load_file(root / "foreign.safetensors"), root / "nameless.safetensors")  # without what it says of itself
    tensors = load_file(root / "cat.safetensors")
    next(iter(tensors.values())).view(-1)[0] = float("inf")
    save_file(tensors, root / "broken.safetensors")
    (root / "text.safetensors").write_text("no tensors at all")
    return root


BAD: Mapping[str, tuple[list[dict[str, Any]], str]] = {
    "of another family": ([{}, {"adapter": "foreign"}], r"entry 2 \(foreign\): The adapter .* was made for Stable Diffusion XL"),
    "of another family that it does not name": ([{}, {"adapter": "nameless"}], r"entry 2 \(nameless\): "),
    "outside the canvas": ([{}, {"region": {"box": [0.5, 0, 1.2, 1]}}], r"entry 2 \(dog\): its box \[0.5, 0, 1.2, 1\] reaches"),
    "words not in the prompt": ([{"words": "fish"}, {}], r'entry 1 \(cat\): its words "fish" are not in the prompt'),
    "the same words": ([{"words": "cat"}, {"words": "cat"}], r"entry 1 \(cat\) and entry 2 \(dog\) are both for the words"),
    "overlap without an order": (
        [{"region": {"box": [0, 0, 0.6, 1]}}, {"region": RIGHT}],
        r"the regions of entry 1 \(cat\) and entry 2 \(dog\) overlap: give both a z",
    ),
    "infinite numbers": ([{}, {"adapter": "broken"}], r"entry 2 \(broken\): .* has NaN or infinite values"),
    "no adapter at all": ([{"adapter": "text"}, {}], r"entry 1 \(text\): "),
    "wholly behind": (
        [{"region": {**LEFT, "z": 1}}, {"region": {"box": [0, 0, 0.5, 1], "z": 2}}],
        r"entry 1 \(cat\): its region lies wholly behind that of entry 2 \(dog\)",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_one_sentence(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str):
    entries, sentence = BAD[name]
    named = [
        {**entry, "adapter": f"{entry.get('adapter', default)}.safetensors"}
        for entry, default in zip(entries, ("cat", "dog"), strict=True)
    ]
    plan = {"base": "base", "prompt": PROMPT, "entries": named, "strategy": "regional", "steps": 1, "height": 64, "width": 64}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["compose", str(folder / "plan.yaml"), "--output", str(tmp_path / "out")])
    said = capfd.readouterr().err
    assert ended.value.code == 2, said
    assert re.search(sentence, said), said
    assert "Traceback" not in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [kind for kind in STRATEGIES if kind.uses_regions], ids=lambda kind: kind.name)
def test_forty_adapters_of_two_types_in_forty_regions(kind: Any, folder: Path):
    base: BaseModel = tiny_base("sd15", folder / "again")
    made = [lora(base, 1, targets={"unet": r"mid_block\..*\.attn2\.to_[kv]"}), kronecker(base, 2)]
    boxes = [[column / 8, row / 5, (column + 1) / 8, (row + 1) / 5] for row in range(5) for column in range(8)]
    entries = [{"region": {"box": box}} for box in boxes]
    latents = drawn(base, made * 20, kind.name, entries=entries, steps=1, height=160, width=256, guidance_scale=1.0)
    assert torch.isfinite(latents).all()
    assert compiled_for(base, made, kind.name, entries=[{"region": LEFT}, {"region": RIGHT}])
