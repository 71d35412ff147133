"""`studio compose --propose-layout` and `--preview`: boxes out of attention, and sheets of masks and maps during a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from studio.cli.main import main
from studio.composition.drawing import draw_batches
from studio.composition.layout import boxes_of, propose_layout
from studio.composition.plan_files import read_plan, write_plan
from studio.composition.views import Preview
from studio.pipelines.adapters import save_adapter
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import Cancelled, UserError
from tests.support.scenes import compiled_for, latents_of, lora, plan_for, scene_for
from tests.support.tiny_bases import tiny_base

WORDS = [{"words": "cat"}, {"words": "dog"}]
FEW = {"unet": r".*attn2\.to_[kv]"}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("embedded", tmp_path_factory.mktemp("compose") / "base")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def plan_file(base: BaseModel, tmp_path: Path) -> Path:
    """A plan without boxes, by a strategy that knows none, with its files."""
    for seed, name in ((1, "cat"), (2, "dog")):
        made = lora(base, seed, trigger=name, targets=FEW)
        save_adapter(replace(made, info=replace(made.info, name=name)), tmp_path / f"{name}.safetensors", "peft")
    entries = [{"adapter": "cat.safetensors"}, {"adapter": "dog.safetensors"}]
    plan = plan_for(2, base=base.source, entries=entries, strategy="composite", height=64, width=96)
    write_plan(plan, tmp_path / "plan.yaml")
    return tmp_path / "plan.yaml"


def test_a_box_is_around_the_largest_patch_where_a_word_is_the_strongest():
    maps = torch.zeros(3, 8, 8)
    maps[0, 2:6, 0:4] = 1.0
    maps[0, 0, 7] = 0.9  # a speck elsewhere
    maps[1, 3:8, 3:6] = 0.8  # behind the first in one column
    maps[2, 2:4, 0:2] = 0.5  # nowhere the strongest
    assert boxes_of(maps) == [(0, 0.25, 0.5, 0.75), (0.375, 0.375, 0.75, 1.0), (0, 0.25, 0.25, 0.5)]


def test_a_layout_has_a_box_for_each_entry_with_words(base: BaseModel):
    adapters = [lora(base, seed, targets=FEW) for seed in range(4)]
    given = {"region": {"box": [0, 0, 0.5, 0.5], "z": 3}, "words": "a", "occurrence": 2}
    layout = propose_layout(scene_for(base, adapters, entries=[*WORDS, given, {}]))
    cat, dog, kept, none = (entry.region for entry in layout.plan.entries)
    assert cat is not None and cat.box is not None and dog is not None and dog.box is not None
    assert kept is not None and kept.box == (0, 0, 0.5, 0.5) and none is None
    assert len(layout.maps) == 2 and layout.latents.shape == (1, 16, 8, 8)
    assert layout.notes == ("entry 4 (4) has no words in the prompt; it gets no box.",)
    with pytest.raises(UserError, match="no entry has words in the prompt and no region yet"):
        propose_layout(scene_for(base, adapters[:1], entries=[given | {"occurrence": 1}]))


def test_a_layout_is_written_shown_and_drawn(run: Run, plan_file: Path):
    wanted = plan_file.parent / "boxes.yaml"
    code, out, err = run("compose", plan_file, "--propose-layout", wanted)
    assert code == 0 and out.split() == [str(wanted), str(wanted.with_suffix(".png"))], err
    assert "composite knows no regions; the new plan has lora-composer" in err
    proposed = read_plan(wanted)
    assert all(entry.region is not None and entry.region.box is not None for entry in proposed.entries)
    with Image.open(wanted.with_suffix(".png")) as picture:
        assert picture.width > 3 * 192
    sheets = plan_file.parent / "sheets"
    code, out, err = run("compose", wanted, "--preview", sheets, "--preview-every", 1, "--output", plan_file.parent / "out")
    assert code == 0, err
    assert sorted(path.name for path in sheets.iterdir()) == ["step-001.png", "step-002.png"]
    code, _, err = run("compose", plan_file, "--propose-layout", plan_file.parent / "boxes.png")
    assert code == 2 and "would be a picture; name a plan" in err


def test_a_run_that_is_watched_draws_the_same_pictures(base: BaseModel):
    for strategy in ("clora", "merge"):
        entries = [entry | {"region": {"box": [0.25 * n, 0, 0.25 * n + 0.25, 1]}} for n, entry in enumerate(WORDS)]
        compiled = compiled_for(
            base, [lora(base, 1, targets=FEW), lora(base, 2, targets=FEW)], strategy, entries=entries, num_images=3
        )
        seen: list[Preview] = []
        watched = [image for images in draw_batches(compiled, batch_size=2, on_preview=seen.append) for image in images]
        alone = [image for images in draw_batches(compiled, batch_size=2) for image in images]
        assert all(ImageChops.difference(a, b).getbbox() is None for a, b in zip(watched, alone, strict=True))
        assert [(preview.done, preview.steps) for preview in seen] == [(1, 2), (2, 2)] * 2
        for preview, count in zip(seen, (2, 2, 1, 1), strict=True):
            assert [view.title for view in preview.concepts] == ["entry 1 (1)", "entry 2 (2)"]
            assert all(view.mask is not None and len(view.mask) == count for view in preview.concepts)
            assert all((view.attention is not None) == (strategy == "clora") for view in preview.concepts)
            assert preview.latents is not None and preview.latents.shape == (count, 16, 8, 8)
    last = seen[-1].latents
    assert last is not None
    single = compiled_for(base, [lora(base, 1, targets=FEW), lora(base, 2, targets=FEW)], strategy, entries=entries, seed=2)
    torch.testing.assert_close(last, latents_of(single), rtol=1e-4, atol=1e-4)


def test_a_run_can_be_ended_at_any_step(base: BaseModel):
    compiled = compiled_for(base, [lora(base, 1, targets=FEW), lora(base, 2, targets=FEW)], "clora", entries=WORDS, steps=4)
    asked: list[int] = []

    def stop_at_the_third() -> bool:
        asked.append(len(asked))
        return len(asked) == 3

    with pytest.raises(Cancelled, match="Stopped after 2 of 4 steps"):
        list(draw_batches(compiled, should_stop=stop_at_the_third))

    def end(preview: Preview) -> None:
        if preview.done == 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        list(draw_batches(compiled, on_preview=end))
    unet: Any = base.unet
    assert {type(processor).__name__ for processor in unet.attn_processors.values()} == {"AttnProcessor2_0"}
    assert all("forward" not in vars(module) for module in unet.modules())
