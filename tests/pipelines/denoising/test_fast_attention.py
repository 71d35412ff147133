"""Keys and values kept over generations, and who computes the attention."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from studio.cli.drawing import use_attention
from studio.cli.main import VERBS, load_verb
from studio.pipelines.adapters import Route, merge_into, patched
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.denoising.attention import choice
from studio.pipelines.denoising.attention.choice import Backend, attention_backend, choose_attention
from studio.pipelines.denoising.attention.text_cache import TextCache, cache_of
from studio.pipelines.errors import UserError
from studio.pipelines.generation import GenerationRequest, draw_latents, resolve_request
from tests.support.adapters import random_adapter
from tests.support.tiny_bases import tiny_base
from tests.support.tiny_models import tiny_embedded

CPU = torch.device("cpu")


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    return tiny_base("embedded", tmp_path)


def draw(base: BaseModel, routes: list[Route], prompt: str = "a dog") -> Tensor:
    request = resolve_request(base, GenerationRequest(prompts=(prompt,), seeds=(1,), steps=2))
    with torch.no_grad(), patched(base.components(), routes):
        return draw_latents(base, request)


def unet_only(base: BaseModel, seed: int = 0) -> Any:
    return random_adapter(tiny_embedded(), seed=seed, targets={"unet": r".*attn\d\.to_.*"})


def test_pictures_are_those_without_a_cache_whatever_changes(base: BaseModel, monkeypatch: pytest.MonkeyPatch):
    """Strengths, adapters, words, the base's own weights, and back again: each time what is drawn without the cache."""
    adapter, other = unet_only(base), unet_only(base, 1)
    cases = [
        ([], "a dog"),
        ([Route(adapter)], "a dog"),
        ([Route(adapter, 0.5)], "a dog"),
        ([Route(other, 0.5)], "a dog"),
        ([Route(adapter), Route(other, 0.2)], "a dog"),
        ([Route(adapter)], "a cat"),
        ([Route(adapter)], "a dog"),
    ]
    cached = [draw(base, routes, prompt) for routes, prompt in cases]
    with merge_into({"unet": base.unet}, other, 0.5):
        merged = draw(base, [], "a dog")
    assert cache_of(base.unet).hits > 0
    monkeypatch.setattr(TextCache, "get", lambda self, key: None)
    for (routes, prompt), picture in zip(cases, cached, strict=True):
        assert torch.equal(draw(base, routes, prompt), picture)
    with merge_into({"unet": base.unet}, other, 0.5):
        assert torch.equal(draw(base, [], "a dog"), merged)
    assert not torch.equal(cached[1], cached[2])


def test_the_second_generation_computes_no_keys(base: BaseModel):
    calls = []
    layer = base.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    plain = type(layer.to_k).forward

    def counting(module: Any, x: Tensor) -> Tensor:
        if module is layer.to_k:
            calls.append(1)
        return plain(module, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", counting)
        first = draw(base, [])
        assert len(calls) == 1
        assert torch.equal(draw(base, []), first)
        assert len(calls) == 1


def test_the_oldest_are_forgotten():
    cache = TextCache(most_bytes=100)
    for number in range(4):
        cache.put((number,), (torch.zeros(5), torch.zeros(5)))
    assert cache.get((0,)) is None and cache.get((1,)) is None
    assert cache.get((2,)) is not None and cache.get((3,)) is not None


class TestBackends:
    def test_torchs_own_is_the_default(self):
        for name in ("auto", "sdpa"):
            backend = choose_attention(name, CPU, torch.float32)
            assert (backend.name, backend.attend, backend.note) == ("sdpa", None, "")

    def test_a_name_that_there_is_not(self):
        with pytest.raises(UserError, match=r"no attention backend 'flash'; choose one of auto, sdpa, flex, xformers"):
            choose_attention("flash", CPU, torch.float32)

    def test_one_that_cannot_compute_here_says_so_in_one_line_and_torchs_own_serves(self, monkeypatch: pytest.MonkeyPatch):
        def broken(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            raise NotImplementedError("No operator found for `memory_efficient_attention_forward` with inputs:\n  device=cpu")

        monkeypatch.setattr(choice, "_xformers", broken)
        choice.why_not.cache_clear()
        backend = choose_attention("xformers", CPU, torch.float32)
        choice.why_not.cache_clear()
        assert backend.name == "sdpa" and backend.attend is None
        assert "xformers attention is not available here (NotImplementedError: No operator found" in backend.note
        assert "\n" not in backend.note

    def test_one_that_computes_something_else_is_not_taken(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(choice, "_xformers", lambda query, key, value: value * 0)
        choice.why_not.cache_clear()
        assert "gave other numbers" in choose_attention("xformers", CPU, torch.float32).note
        choice.why_not.cache_clear()

    def test_the_environment_names_one_for_all_models_that_are_loaded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        calls = []

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            calls.append(query.shape)
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)

        monkeypatch.setattr(choice, "_xformers", attend)
        choice.why_not.cache_clear()
        monkeypatch.setenv(choice.ENVIRONMENT, "xformers")
        base = tiny_base("embedded", tmp_path)
        tries = len(calls)
        draw(base, [Route(unet_only(base))])
        assert len(calls) > tries and not caplog.records
        monkeypatch.setattr(choice, "_xformers", lambda query, key, value: value * 0)
        choice.why_not.cache_clear()
        load_base(base.root_dir)
        assert "torch's own is used" in caplog.records[-1].getMessage()
        choice.why_not.cache_clear()
        monkeypatch.setenv(choice.ENVIRONMENT, "flash")
        with pytest.raises(UserError, match="no attention backend 'flash'"):
            load_base(base.root_dir)

    def test_one_without_a_way_back_leaves_gradients_to_torchs_own(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        @torch.no_grad()
        def forward_only(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)

        monkeypatch.setattr(choice, "_flex", forward_only)
        for known in (choice.why_not, choice._say_once):
            known.cache_clear()
        backend = choose_attention("flex", CPU, torch.float32)
        assert backend.name == "flex" and backend.attend is not None and not backend.note
        query, key, value = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
        assert not backend.attend(query.detach(), key.detach(), value.detach()).requires_grad and not caplog.records
        for _ in range(2):
            (gradient,) = torch.autograd.grad(backend.attend(query, key, value).sum(), value)
            assert gradient.abs().sum() > 0
        assert [record.getMessage()[:36] for record in caplog.records] == ["flex attention has no gradients here"]
        for known in (choice.why_not, choice._say_once):
            known.cache_clear()

    @pytest.mark.parametrize("command", ["generate", "compose", "compare", "batch", "worker", "train"])
    def test_every_command_that_computes_attention_lets_it_be_chosen(self, command: str):
        loaded = load_verb(next(verb for verb in VERBS if verb.name == command))
        for each in loaded.commands.values() if command == "train" else [loaded]:
            assert "--attention" in {option for parameter in each.params for option in parameter.opts}

    def test_the_commands_choice_is_the_environments(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv(choice.ENVIRONMENT, "auto")
        use_attention(None)
        assert os.environ[choice.ENVIRONMENT] == "auto"
        use_attention("sdpa")
        assert os.environ[choice.ENVIRONMENT] == "sdpa"
        with pytest.raises(UserError, match="no attention backend 'flash'"):
            use_attention("flash")

    def test_the_chosen_one_computes_every_layer(self, base: BaseModel):
        calls = []

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            calls.append(query.shape)
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)

        expected = draw(base, [])
        with attention_backend(base.unet, Backend("mine", attend)):
            assert torch.equal(draw(base, []), expected)
            with_adapter = draw(base, [Route(unet_only(base))])
        layers = sum(name.endswith(("attn1", "attn2")) for name, _ in base.unet.named_modules())
        assert len(calls) == 2 * 2 * layers
        assert torch.equal(draw(base, [Route(unet_only(base))]), with_adapter)
        assert len(calls) == 2 * 2 * layers
