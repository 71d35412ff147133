"""`studio stylize`: which halves act, with which words, and what the pictures say about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from studio.cli.main import main
from studio.pipelines.adapters import Adapter, AdapterInfo, load_adapter, new_lora, save_adapter
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.block_roles import BlockProbe, probe_path, write_block_probe
from studio.pipelines.errors import UserError
from studio.pipelines.pictures import read_png
from studio.training.methods.b_lora import inside
from studio.workflows.stylize import KEEP_COLOURS_STRENGTH, StylizeWishes, plan_stylize
from tests.support.tiny_bases import tiny_base

CONTENT, STYLE = "mid_block.attentions.0", "up_blocks.2.attentions.0"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("embedded", tmp_path_factory.mktemp("base"))


def b_lora(base: BaseModel, trigger: str, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    targets = {"unet": inside([CONTENT, STYLE], base.family.attention_targets)}
    adapter = new_lora(base.components(), targets, 2, 2.0, generator=generator)
    for name, tensor in adapter.named_tensors().items():
        if name.endswith("up"):
            nn.init.normal_(tensor, 0.0, 0.2, generator=generator)
    blocks = {"content": (CONTENT,), "style": (STYLE,)}
    return Adapter(
        AdapterInfo(name=trigger, family="embedded", trigger=trigger, roles=tuple(blocks), role_blocks=blocks), adapter.patches
    )


@pytest.fixture(scope="module")
def cat(base: BaseModel) -> Adapter:
    return b_lora(base, "ohwx", 1)


@pytest.fixture(scope="module")
def ink(base: BaseModel) -> Adapter:
    return b_lora(base, "zwx", 2)


def halves(base: BaseModel, **wishes: object) -> list[tuple[str, str, float]]:
    plan = plan_stylize(base, StylizeWishes(**wishes))  # type: ignore[arg-type]
    for half in plan.halves:
        wanted = {"content": CONTENT, "style": STYLE}[half.role]
        assert all(path.module.startswith(wanted) for path in half.route.adapter.patches)
    return [(half.of, half.role, half.strength) for half in plan.halves]


def test_three_uses(base: BaseModel, cat: Adapter, ink: Adapter):
    both = halves(base, content=cat, style=ink, style_strength=1.1)
    assert both == [("content", "content", 1.0), ("style", "style", 1.1)]
    assert plan_stylize(base, StylizeWishes(content=cat, style=ink)).prompt == "a ohwx in zwx style"
    assert halves(base, content=cat, prompt="a ohwx made of gold") == [("content", "content", 1.0)]
    assert halves(base, style=ink, prompt="a backpack in zwx style") == [("style", "style", 1.0)]
    assert halves(base, content=cat, style=ink, content_strength=0.0) == [("style", "style", 1.0)]


def test_keeping_colours_lets_the_contents_own_style_act(base: BaseModel, cat: Adapter, ink: Adapter):
    assert 0.4 <= KEEP_COLOURS_STRENGTH <= 0.5
    own = ("content", "style", KEEP_COLOURS_STRENGTH)
    assert halves(base, content=cat, prompt="a ohwx made of gold", keep_colours=True) == [("content", "content", 1.0), own]
    assert own in halves(base, content=cat, style=ink, keep_colours=True)
    with pytest.raises(UserError, match="needs --content"):
        halves(base, style=ink, prompt="x", keep_colours=True)


def test_words_for_one_block(base: BaseModel, cat: Adapter, ink: Adapter):
    wishes = StylizeWishes(content=cat, style=ink, content_prompt="a ohwx")
    assert plan_stylize(base, wishes).block_prompts == {CONTENT: "a ohwx"}
    both = replace(wishes, style_prompt="zwx style")
    assert plan_stylize(base, both).block_prompts == {CONTENT: "a ohwx", STYLE: "zwx style"}


@pytest.mark.parametrize(("given", "sentence"), [("content", "how it shall be drawn"), ("style", "what shall be drawn")])
def test_one_picture_needs_words(base: BaseModel, cat: Adapter, given: str, sentence: str):
    with pytest.raises(UserError, match=sentence):
        plan_stylize(base, StylizeWishes(**{given: cat}))
    with pytest.raises(UserError, match="--content FILE, --style FILE"):
        plan_stylize(base, StylizeWishes(prompt="a cat"))


def test_a_base_without_separation_is_said_so(base: BaseModel, cat: Adapter, ink: Adapter, tmp_path: Path):
    other = tiny_base("embedded", tmp_path / "base", seed=1)
    probe = BlockProbe(
        base_hash=other.content_hash, content_block=CONTENT, style_block=STYLE, separates=False, sentence="3 of 20 did better."
    )
    write_block_probe(probe_path(other), probe, {})
    notes = plan_stylize(other, StylizeWishes(content=cat, style=ink)).notes
    assert len(notes) == 1 and "no separation (3 of 20 did better.)" in notes[0]
    write_block_probe(probe_path(other), replace(probe, separates=True), {})
    assert plan_stylize(other, StylizeWishes(content=cat, style=ink)).notes == ()
    same_word = replace(ink, info=replace(ink.info, trigger="ohwx"))
    assert "Both adapters answer to 'ohwx'" in plan_stylize(base, StylizeWishes(content=cat, style=same_word)).notes[0]


def test_files_of_other_tools_take_the_bases_blocks(tmp_path: Path, cat: Adapter, base: BaseModel):
    sd15 = tiny_base("sd15", tmp_path / "base")
    silent = replace(cat, info=replace(cat.info, family=None, role_blocks={}))
    with pytest.raises(UserError, match="studio probe-blocks"):
        plan_stylize(sd15, StylizeWishes(content=silent, prompt="x"))
    named = StylizeWishes(content=silent, prompt="x", content_block=CONTENT, style_block="up_blocks.1.attentions.0")
    plan = plan_stylize(sd15, named)
    assert {path.module.rsplit(".transformer", 1)[0] for path in plan.routes[0].adapter.patches} == {CONTENT}
    assert "does not say where its halves sit" in plan.notes[0]
    assert plan_stylize(sd15, StylizeWishes(content=cat, prompt="x")).halves  # its file says so itself


@pytest.fixture
def run(base: BaseModel, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(
                ["stylize", "--base", str(base.root_dir), "--device", "cpu", "--steps", "2", "--seed", "5", "-n", "2", *arguments]
            )
        printed = capfd.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


def test_the_command_draws_and_writes_the_recipe(
    run: Callable[..., tuple[int, str, str]], base: BaseModel, cat: Adapter, ink: Adapter, tmp_path: Path
):
    for name, adapter in (("cat", cat), ("ink", ink)):
        save_adapter(adapter, tmp_path / f"{name}.safetensors", "kohya")
    files = ["--content", str(tmp_path / "cat.safetensors"), "--style", str(tmp_path / "ink.safetensors")]
    code, printed, notes = run(*files, "--style-strength", "0.5", "--content-prompt", "a ohwx", "--output", str(tmp_path / "out"))
    assert code == 0, notes
    pictures = [Path(line) for line in printed.splitlines()]
    assert len(pictures) == 3 and pictures[-1].name.endswith("contact-sheet.png")
    record, text = read_png(pictures[0])
    assert text is not None and text.prompt == "a ohwx in zwx style"  # no <lora:…> tag, which would load a whole file
    assert text.settings["Adapter halves"] == "content of cat: 1, style of ink: 0.5"
    assert record is not None and record.prompt == "a ohwx in zwx style"
    assert [(use.name, use.role, use.strength) for use in record.adapters] == [("cat", "content", 1.0), ("ink", "style", 0.5)]
    assert record.block_prompts == {CONTENT: "a ohwx"}
    assert load_adapter(tmp_path / "cat.safetensors").info.role_blocks == {"content": (CONTENT,), "style": (STYLE,)}


def test_mistakes_of_the_command_are_sentences(run: Callable[..., tuple[int, str, str]], tmp_path: Path):
    assert run("--content", str(tmp_path / "none.safetensors"))[0] == 3
    code, _, said = run()
    assert code == 2 and "--content FILE" in said


def test_loaded_base_has_its_probe_beside_it(base: BaseModel):
    assert probe_path(load_base(base.root_dir)).parent == base.root_dir
