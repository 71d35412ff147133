"""Two adapters in the two halves of a picture, one of them at a thousand times its strength: the other half stays, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from studio.pipelines.adapters import Adapter, AdapterInfo, FullPatch, ParameterPath, Route
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import (
    STRICT,
    Branch,
    DenoiseRequest,
    GuidanceStrategy,
    Isolation,
    Region,
    Step,
    denoise,
    make_scheduler,
)
from studio.pipelines.families import module_axis
from tests.support.adapters import random_adapter, random_kronecker
from tests.support.passes import base_of, latents_of, passes_of, text_of
from tests.support.sparse import sparse_adapter
from tests.support.tiny_models import TinyModel

Setup = tuple[BaseModel, TinyModel]

LEFT = torch.zeros(64, 128)
LEFT[:, :64] = 1.0
RIGHT = 1.0 - LEFT
EVERY_LAYER = {"unet": r"(?!.*(time_emb|add_emb)).*"}  # linear and convolution: all that has places or words


def full(model: TinyModel) -> Adapter:
    """A dense change of every weight and bias, of norms too."""
    generator = torch.Generator().manual_seed(3)
    patches = {
        ParameterPath("unet", *name.rsplit(".", 1)): FullPatch(0.02 * torch.randn(tensor.shape, generator=generator))
        for name, tensor in model.unet.named_parameters()
    }
    return Adapter(AdapterInfo(name="full", type="full"), patches)


ADAPTERS: Mapping[str, Callable[[TinyModel], Adapter]] = {
    "lora": lambda model: random_adapter(model, seed=5, targets=EVERY_LAYER),
    "dora": lambda model: random_adapter(model, seed=6, targets=EVERY_LAYER, dora=True),
    "lokr": lambda model: random_kronecker(model, seed=7),
    "sparse": lambda model: sparse_adapter(model, everything=True),
    "full": full,
}


# Every kind on the one, whose projections are convolutions; two on the other, where they are linear.
CASES = [*(("sd15", kind) for kind in ADAPTERS), ("sdxl", "lora"), ("sdxl", "full")]


@pytest.fixture(scope="module")
def setups(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Setup]:
    return {name: base_of(name, tmp_path_factory.mktemp(name)) for name in ("sd15", "sdxl")}


@pytest.fixture
def setup(setups: dict[str, Setup]) -> Setup:
    return setups["sd15"]


def branch_of(setup: Setup, other: Adapter, strength: float, isolation: Isolation | None) -> Branch:
    """A LoRA with words of its own in the left half, and `other` with its words in the right one."""
    base, model = setup
    return Branch(
        text_of(base, "a cat and a dog"),
        regions=(
            Region(LEFT, text_of(base, "a cat"), [Route(random_adapter(model, seed=1, targets=EVERY_LAYER), 0.7)]),
            Region(RIGHT, text_of(base, "a dog"), [Route(other, strength)]),
        ),
        isolation=isolation,
    )


def halves(setup: Setup, other: Adapter, isolation: Isolation | None) -> tuple[tuple[Tensor, Tensor], ...]:
    """(left, right) half of the prediction with the right adapter at strength 1, then at 1000."""
    base, _ = setup
    found = []
    for strength in (1.0, 1000.0):
        passes = passes_of(base)
        with torch.no_grad():
            (output,) = passes.run(latents_of(base), passes.step(0), [branch_of(setup, other, strength, isolation)])
        found.append(output.prediction.chunk(2, dim=-1))
    return tuple(found)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_strict_isolation_lets_no_bit_through_the_whole_denoiser(setups: dict[str, Setup], name: str, kind: str):
    setup = setups[name]
    (left, right), (left_after, right_after) = halves(setup, ADAPTERS[kind](setup[1]), STRICT)
    assert torch.equal(left, left_after)
    assert not torch.allclose(right, right_after, rtol=0.1)


@pytest.mark.parametrize(
    ("name", "scheduler", "other"),
    [("sd15", "ddim", ("lokr", "full")), ("sdxl", "euler", ("sparse", "lora")), ("sd15", "dpm++", ("dora", "sparse"))],
)
def test_nor_through_a_whole_picture(setups: dict[str, Setup], name: str, scheduler: str, other: tuple[str, str]):
    """Another adapter and a thousand times the strength, over some guided steps."""
    setup = setups[name]
    base, model = setup

    class Halves(GuidanceStrategy):
        def __init__(self, adapter: Adapter, strength: float) -> None:
            super().__init__(text_of(base, "x"), text_of(base, ""), 3.0)
            self.parts = [branch_of(setup, adapter, strength, STRICT) for _ in range(2)]

        def branches(self, step: Step) -> list[Branch]:
            return self.parts

    def draw(kind: str, strength: float) -> Tensor:
        request = DenoiseRequest(
            noise=latents_of(base),
            height=64,
            width=128,
            scheduler=make_scheduler(base.scheduler, scheduler),
            num_steps=2,
            generators=[torch.Generator().manual_seed(0)],
        )
        return denoise(base, request, Halves(ADAPTERS[kind](model), strength))

    before, after = draw(other[0], 1.0), draw(other[1], 1000.0)
    assert torch.equal(before[..., :8], after[..., :8])
    assert not torch.allclose(before[..., 8:], after[..., 8:], rtol=0.1)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_isolated_attention_lets_no_bit_through_a_stack_of_blocks(setups: dict[str, Setup], name: str, kind: str):
    """Group norm comes before the adapters there, so what LoRA-Composer isolates is enough: projections, attention, words."""
    setup = setups[name]
    base, _ = setup
    whole = ADAPTERS[kind](setup[1])
    stack = "down_blocks.1.attentions.0"
    inside = Adapter(whole.info, {path: patch for path, patch in whole.patches.items() if path.module.startswith(stack)})
    seen: list[Tensor] = []
    handle = base.unet.get_submodule(stack).register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    halves(setup, inside, Isolation(background_sees_regions=False))
    halves(setup, inside, None)
    handle.remove()
    (left, right), (left_after, right_after) = (output.chunk(2, dim=-1) for output in seen[:2])
    assert torch.equal(left, left_after)
    assert not torch.allclose(right, right_after, rtol=0.1)
    attention_alone = [output.chunk(2, dim=-1)[0] for output in seen[2:]]
    assert not torch.equal(*attention_alone)


def test_isolated_attention_alone_leaks_through_the_denoisers_own_convolutions_and_norms(setup: Setup):
    """Why there is a stricter one."""
    (left, _), (left_after, _) = halves(setup, ADAPTERS["lora"](setup[1]), Isolation(background_sees_regions=False))
    assert not torch.equal(left, left_after)


def test_a_background_that_sees_nobody_stays_too(setup: Setup):
    """A region on the grid's third quarter; the rest is background, and keeps its bits where regions may see it."""
    base, model = setup
    mask = torch.zeros(64, 128)
    mask[:, 64:] = 1.0
    predictions = []
    for strength in (1.0, 1000.0):
        region = Region(mask, text_of(base, "a dog"), [Route(ADAPTERS["lora"](model), strength)])
        passes = passes_of(base)
        branch = Branch(text_of(base, "a cat"), regions=(region,), isolation=STRICT)
        with torch.no_grad():
            predictions.append(passes.run(latents_of(base), passes.step(0), [branch])[0].prediction)
    assert torch.equal(predictions[0][..., :8], predictions[1][..., :8])
    assert not torch.equal(predictions[0][..., 8:], predictions[1][..., 8:])


def test_one_region_that_is_all_is_isolated_from_nothing(setup: Setup):
    base, _ = setup
    text, everywhere = text_of(base, "a cat"), (Region(torch.ones(64, 128)),)
    passes = passes_of(base)
    branches = [Branch(text, regions=everywhere, isolation=isolation) for isolation in (None, Isolation(), STRICT)]
    with torch.no_grad():
        plain, *isolated = [passes.run(latents_of(base), passes.step(0), [branch])[0].prediction for branch in branches]
    for prediction in isolated:
        torch.testing.assert_close(prediction, plain, atol=1e-5, rtol=1e-4)


def test_what_has_no_place_does_not_act_and_is_named(setup: Setup):
    """Norms, biases and time embeddings of the dense adapter; every other layer of it acts."""
    base, model = setup
    passes = passes_of(base)
    adapter = full(model)
    with torch.no_grad():
        passes.run(latents_of(base), passes.step(0), [branch_of(setup, adapter, 1.0, STRICT)])
    left_out = {line.path for line in passes.report()}
    expected = {
        path
        for path in adapter.patches
        if path.parameter == "bias" or "norm" in path.module or module_axis(path.module) == "global"
    }
    assert left_out == expected
