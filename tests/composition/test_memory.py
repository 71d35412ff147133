"""The memory guard: what it predicts, in which order it saves, what it says, and that sparing ways draw the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from studio.cli.main import main
from studio.composition.drawing import Compiled, batch_request
from studio.composition.memory import MemoryNeed, fit_memory, free_memory, parse_memory, predict_memory
from studio.composition.thrift import Thrift, checkpointed, ladder
from studio.pipelines.adapters import save_adapter
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import denoise
from studio.pipelines.errors import UserError
from tests.support.scenes import compiled_for, lora
from tests.support.tiny_bases import tiny_base, tiny_sd15_dir

ASKED = Thrift(batch_size=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("sd15", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def compiled(base: BaseModel) -> Compiled:
    entries = [{"words": "cat"}, {"words": "dog"}]
    return compiled_for(base, [lora(base, 1), lora(base, 2)], "clora", entries=entries, num_images=2, steps=2)


@pytest.fixture(scope="module")
def needs(compiled: Compiled) -> dict[Thrift, MemoryNeed]:
    """What each way takes."""
    steps = ladder(ASKED)
    return {thrift: predict_memory(compiled, thrift) for thrift in (*steps[:3], steps[4], steps[-1])}


def test_the_ladder_is_in_the_stated_order():
    steps = ladder(Thrift(batch_size=4))
    assert steps[0] == Thrift(batch_size=4)
    assert steps[1] == Thrift(batch_size=4, one_by_one=True)
    assert [step.batch_size for step in steps] == [4, 4, 2, 1, 1, 1, 1, 1]
    assert [step.captured_share for step in steps] == [1, 1, 1, 1, 0.5, 0.25, 0.125, 0.125]
    assert [step.checkpointing for step in steps] == [False] * 7 + [True]


def test_every_step_of_it_takes_less_and_weights_stay(needs: dict[Thrift, MemoryNeed]):
    found = list(needs.values())
    assert all(later.passes <= earlier.passes for earlier, later in zip(found, found[1:], strict=False))
    assert found[-1].passes < found[0].passes / 2
    assert len({need.weights for need in found}) == 1


def test_weights_are_all_tensors_once(base: BaseModel, compiled: Compiled, needs: dict[Thrift, MemoryNeed]):
    modules = [*base.components().values(), base.vae]
    size = sum(t.numel() * t.element_size() for m in modules for t in (*m.parameters(), *m.buffers()))
    size += sum(t.numel() * t.element_size() for each in compiled.scene.concepts for t in each.adapter.named_tensors().values())
    assert needs[ASKED].weights == size


def test_the_first_way_that_fits_is_taken_and_said(compiled: Compiled, needs: dict[Thrift, MemoryNeed]):
    plenty = fit_memory(compiled, ASKED, 10**12)
    assert plenty.thrift == ASKED and plenty.notes == ()
    steps = ladder(ASKED)
    tight = fit_memory(compiled, ASKED, needs[steps[1]].peak)
    assert tight.thrift == steps[1] and tight.need.peak < needs[ASKED].peak
    assert "branches run one after the other" in tight.notes[0]


def test_what_fits_in_no_way_is_refused_with_the_figure(compiled: Compiled):
    with pytest.raises(UserError, match=r"at the least, .* MB of it for weights, and 1 MB are allowed"):
        fit_memory(compiled, ASKED, 10**6)


def latents(compiled: Compiled, thrift: Thrift) -> torch.Tensor:
    seeds: Sequence[int] = compiled.scene.request.seeds
    parts = []
    for start in range(0, len(seeds), thrift.batch_size):
        request = batch_request(compiled.scene, seeds[start : start + thrift.batch_size], thrift)
        with checkpointed(compiled.scene.base.unet, thrift.checkpointing):
            parts.append(denoise(compiled.scene.base, request, compiled.strategy))
    return torch.cat(parts)


def test_saving_without_loss_draws_the_same(compiled: Compiled):
    plain = latents(compiled, ASKED)
    for thrift in (Thrift(batch_size=1, one_by_one=True), Thrift(batch_size=2, one_by_one=True, checkpointing=True)):
        torch.testing.assert_close(latents(compiled, thrift), plain, rtol=1e-3, atol=1e-3)
    assert not compiled.scene.base.unet.is_gradient_checkpointing


@pytest.mark.parametrize(("text", "size"), [("4GB", 4 * 10**9), ("1.5 GiB", 3 * 2**29), ("900mb", 9 * 10**8)])
def test_sizes_are_read(text: str, size: int):
    assert parse_memory(text, torch.device("cpu")) == size


@pytest.mark.parametrize("text", ["", "4", "GB", "0GB", "4 apples", "-1GB"])
def test_what_is_no_size_is_refused(text: str):
    with pytest.raises(UserError, match="--memory-limit"):
        parse_memory(text, torch.device("cpu"))


def test_free_memory_is_more_than_this_process_has():
    assert parse_memory("auto", torch.device("cpu")) > 10**8
    assert free_memory(torch.device("cpu")) < 10**14


def test_compose_says_what_it_saves(base: BaseModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tiny_sd15_dir(tmp_path / "base")
    save_adapter(lora(base, 1), tmp_path / "a.safetensors", family=base.family)
    command = ["compose", "-p", "a cat", "-a", str(tmp_path / "a.safetensors"), "--base", str(folder), "--steps", "1"]
    command += ["--size", "64x64", "--seed", "0", "-n", "2", "--batch-size", "2", "--device", "cpu", "-o", str(tmp_path / "out")]
    same = compiled_for(base, [lora(base, 1)], "merge", num_images=2, steps=1)
    asked = predict_memory(same, ASKED).peak
    for limit, code in ((asked - 1, 0), (10**6, 2)):
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--memory-limit", f"{limit}B"])
        assert stopped.value.code == code
        said = capsys.readouterr()
        if code == 0:
            assert "note: " in said.err and "are allowed: branches run one after the other" in said.err
            assert len(list((tmp_path / "out").glob("*-*.png"))) == 3  # two pictures and their sheet
        else:
            assert "at the least" in said.err
