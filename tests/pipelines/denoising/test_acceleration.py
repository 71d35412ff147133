"""Compiled blocks under which adapters are switched, and passes that are recorded where there is a GPU."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from studio.pipelines.adapters import Adapter, Route, new_lora, patched
from studio.pipelines.adapters.traced import mark_compiled
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising.acceleration import GraphedPass, compile_blocks, recorded_passes, records_passes
from studio.pipelines.errors import UserError
from studio.pipelines.generation import GenerationRequest, draw_latents, resolve_request
from tests.support.adapters import random_adapter
from tests.support.tiny_bases import tiny_base
from tests.support.tiny_models import tiny_embedded

WIDTH = 24
EVERYWHERE = r".*attn\d\.to_(q|k|v|out\.0)|.*ff\.net\.(0\.proj|2)"


class Compilations:
    """A backend that compiles nothing, and counts how often it was asked to."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: list[Any]) -> Any:
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _forgets_what_was_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Stack(nn.Module):
    """One block of a UNet."""

    def __init__(self) -> None:
        super().__init__()
        self.block = BasicTransformerBlock(WIDTH, 2, WIDTH // 2, cross_attention_dim=16).requires_grad_(False).eval()

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        return self.block(x, encoder_hidden_states=text)


def lora(stack: Stack, rank: int, seed: int, targets: str = EVERYWHERE) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    adapter = new_lora({"unet": stack}, {"unet": targets}, rank, float(rank), generator=generator)
    for tensor in adapter.named_tensors().values():
        tensor.requires_grad_(False).normal_(0.0, 0.1, generator=generator)
    return adapter


@pytest.fixture
def stacks() -> tuple[Stack, Stack]:
    """A block, and the same to be compiled."""
    torch.manual_seed(0)
    eager = Stack()
    return eager, copy.deepcopy(eager)


INPUTS = (torch.linspace(-1.0, 1.0, 2 * 5 * WIDTH).view(2, 5, WIDTH), torch.linspace(1.0, -1.0, 2 * 7 * 16).view(2, 7, 16))


@torch.no_grad()
def output(stack: Stack, *routes: Route) -> Tensor:
    with patched({"unet": stack}, routes, "never"):
        return stack(*INPUTS)


def test_twenty_switches_of_ranks_4_to_64_compile_nothing(stacks: tuple[Stack, Stack]):
    eager, compiled = stacks
    backend = Compilations()
    compiled.block.compile(backend=backend, fullgraph=True)
    mark_compiled(compiled)
    for rank in (16, 32, 64):
        output(compiled, Route(lora(compiled, rank, 0)))
    known, choice = backend.count, random.Random(0)
    assert 1 <= known <= 3
    for seed in range(20):
        adapter = lora(compiled, choice.randint(4, 64), seed)
        route = Route(adapter, choice.uniform(-1.0, 1.0))
        torch.testing.assert_close(output(compiled, route), output(eager, route), atol=2e-5, rtol=1e-4)
    assert backend.count == known
    torch.testing.assert_close(output(compiled), output(eager))
    assert backend.count == known + 1


@pytest.mark.parametrize("targets", [r".*attn1\.to_(q|v)", r".*attn2\.to_q|.*ff\.net\.2"])
def test_single_projections_stay_one_graph(stacks: tuple[Stack, Stack], targets: str):
    eager, compiled = stacks
    compiled.block.compile(backend="eager", fullgraph=True)
    mark_compiled(compiled)
    route = Route(lora(compiled, 4, 0, targets), 0.5)
    torch.testing.assert_close(output(compiled, route), output(eager, route), atol=2e-5, rtol=1e-4)


def test_blocks_within_blocks(stacks: tuple[Stack, Stack]):
    """The inner block's factors go where the outer one's were; afterwards these are there again."""
    eager, compiled = stacks
    compiled.block.compile(backend="eager", fullgraph=True)
    mark_compiled(compiled)
    outer, inner = Route(lora(compiled, 4, 0), 0.5), Route(lora(compiled, 6, 1), -0.7)
    with torch.no_grad(), patched({"unet": compiled}, [outer], "never"):
        torch.testing.assert_close(output(compiled, inner), output(eager, outer, inner), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(compiled(*INPUTS), output(eager, outer), atol=2e-5, rtol=1e-4)


def test_an_exported_block_has_the_operators(stacks: tuple[Stack, Stack]):
    eager, compiled = stacks
    mark_compiled(compiled)
    route = Route(lora(compiled, 4, 0), 0.5)
    with torch.no_grad(), patched({"unet": compiled}, [route], "never"):
        exported = torch.export.export(compiled, INPUTS)
        calls = [str(node.target) for node in exported.graph.nodes if str(node.target).startswith("studio.")]
        found = exported.module()(*INPUTS)
    # Queries, keys and values of one attention, queries and both others of the other, two outputs and two feed-forwards.
    assert calls == ["studio.joint_lora.default"] * 7
    torch.testing.assert_close(found, output(eager, route), atol=2e-5, rtol=1e-4)


def test_nothing_of_an_adapter_is_held_afterwards(stacks: tuple[Stack, Stack]):
    _, compiled = stacks
    mark_compiled(compiled)
    adapter = lora(compiled, 4, 0)
    gone = weakref.ref(adapter)
    output(compiled, Route(adapter))
    del adapter
    gc.collect()
    assert gone() is None


def test_gradients_reach_inputs_and_factors(stacks: tuple[Stack, Stack]):
    eager, compiled = stacks
    compiled.block.compile(backend="aot_eager", fullgraph=True)
    mark_compiled(compiled)
    x = INPUTS[0].clone().requires_grad_()
    for trains in (False, True):
        found = []
        for stack in (eager, compiled):
            adapter = lora(stack, 4, 0, r".*attn2\.to_(k|v)|.*ff\.net\.0\.proj")
            factors = [tensor.requires_grad_(trains) for tensor in adapter.named_tensors().values()]
            with patched({"unet": stack}, [Route(adapter)], "never"):
                found.append(torch.autograd.grad(stack(x, INPUTS[1]).sin().sum(), [x, *(factors if trains else [])]))
        torch.testing.assert_close(*found, atol=2e-5, rtol=1e-4)


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    return tiny_base("embedded", tmp_path)


def draw(base: BaseModel, routes: list[Route]) -> Tensor:
    request = resolve_request(base, GenerationRequest(prompts=("a dog", "a cat"), seeds=(1, 2), steps=2))
    with torch.no_grad(), patched(base.components(), routes):
        return draw_latents(base, request)


@pytest.mark.slow
def test_pictures_of_a_compiled_base(base: BaseModel):
    adapters = [random_adapter(tiny_embedded(), seed=seed, rank=rank) for seed, rank in ((0, 2), (1, 3))]
    cases = [[Route(adapters[0])], [Route(adapters[1], 0.5)]]
    expected = [draw(base, routes) for routes in cases]
    backend = Compilations()
    compile_blocks(base.unet, backend=backend, fullgraph=True)
    counts = []
    for routes, wanted in zip(cases, expected, strict=True):
        torch.testing.assert_close(draw(base, routes), wanted, atol=1e-4, rtol=1e-4)
        counts.append(backend.count)
    assert 0 < counts[0] == counts[1]


def test_a_model_without_repeated_blocks():
    with pytest.raises(UserError, match="A Linear has no repeated blocks to compile; draw without --compile"):
        compile_blocks(nn.Linear(1, 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
class TestWithoutAGPU:
    def test_a_graph_is_refused_in_a_sentence(self):
        with pytest.raises(UserError, match="A CUDA graph needs a CUDA device, which is not here"):
            GraphedPass(lambda tensors: tensors["x"], {"x": torch.zeros(1)})

    def test_recorded_passes_run_as_they_are(self, base: BaseModel):
        expected = draw(base, [])
        with recorded_passes(base.unet, torch.device("cpu")) as note:
            assert note == "CUDA graphs need a CUDA device, and the model is on cpu; passes run as they are."
            assert not records_passes(base.unet)
            assert torch.equal(draw(base, []), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replayed_passes_are_those_that_run(base: BaseModel):
    base.to("cuda")
    adapters = [random_adapter(tiny_embedded(), seed=seed, rank=rank).to("cuda") for seed, rank in ((0, 2), (1, 3))]
    for routes in ([], [Route(adapters[0])], [Route(adapters[1], 0.5)]):
        expected = draw(base, routes)
        with recorded_passes(base.unet, torch.device("cuda")) as note:
            assert not note and records_passes(base.unet)
            torch.testing.assert_close(draw(base, routes), expected, atol=1e-4, rtol=1e-4)
        assert not records_passes(base.unet)
