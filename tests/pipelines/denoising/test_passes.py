"""What a strategy can have of the loop: feature caches per adapter and half, passes of its own, maps to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from studio.pipelines.adapters import Route
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import (
    Branch,
    Capture,
    DenoiseRequest,
    FeatureUse,
    GuidanceStrategy,
    Passes,
    PassOutput,
    Step,
    denoise,
    layers_at,
    make_scheduler,
    mean_map,
    token_columns,
)
from tests.support.adapters import random_adapter, random_kronecker
from tests.support.passes import base_of, latents_of, passes_of, text_of
from tests.support.tiny_models import TEXT_LENGTH, TinyModel

Setup = tuple[BaseModel, TinyModel]


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return base_of("sd15", tmp_path_factory.mktemp("sd15"))


def draw(base: BaseModel, strategy: GuidanceStrategy, steps: int = 4, scheduler: str = "euler", **settings: Any) -> Tensor:
    request = DenoiseRequest(
        noise=latents_of(base, 64, 64, pictures=2),
        height=64,
        width=64,
        scheduler=make_scheduler(base.scheduler, scheduler),
        num_steps=steps,
        generators=[torch.Generator().manual_seed(seed) for seed in range(2)],
        **settings,
    )
    return denoise(base, request, strategy)


class Cached(GuidanceStrategy):
    """Two adapters, mean of both; the halves of each keep features of their own, refreshed every `interval` steps."""

    def __init__(self, base: BaseModel, adapters: Sequence[Any], interval: int | None) -> None:
        super().__init__(text_of(base, "a cat", "a boat"), text_of(base, "", ""), 3.0)
        self.routes = [[Route(adapter)] for adapter in adapters]
        self.interval = interval

    def branches(self, step: Step) -> list[Branch]:
        found = []
        for index, routes in enumerate(self.routes):
            for half, condition in (("without", self.negative), ("with", self.condition)):
                use = None if self.interval is None else FeatureUse((index, half), 2, step.index % self.interval == 0)
                found.append(Branch(condition, routes, features=use))
        return found

    def combine(self, step: Step, predictions: Sequence[Tensor]) -> Tensor:
        guided = [super(Cached, self).combine(step, predictions[at : at + 2]) for at in range(0, len(predictions), 2)]
        return torch.stack(guided).mean(dim=0)


@pytest.mark.parametrize("max_rows", [0, 16])
def test_features_refreshed_at_every_step_are_no_cache_to_the_bit(setup: Setup, max_rows: int):
    base, model = setup
    adapters = (random_adapter(model), random_kronecker(model, seed=1))
    plain = draw(base, Cached(base, adapters, None), 2, max_rows=max_rows)
    assert torch.equal(draw(base, Cached(base, adapters, 1), 2, max_rows=max_rows), plain)


def test_every_adapter_and_half_has_a_cache_of_its_own(setup: Setup):
    """Four features are kept, the middle runs in every other step alone, and copies of one adapter are that adapter."""
    base, model = setup
    adapters = (random_adapter(model), random_kronecker(model, seed=1))
    ran: list[int] = []
    handle = base.unet.mid_block.register_forward_hook(lambda module, inputs, output: ran.append(len(output)))
    inner = base.unet.mid_block.resnets[0].register_forward_hook(lambda module, inputs, output: ran.append(len(output)))
    cached = draw(base, Cached(base, adapters, 2))
    handle.remove()
    inner.remove()
    assert ran == [4, 4] * 2  # two pictures, two halves; for both adapters, at steps 0 and 2
    assert not torch.allclose(cached, draw(base, Cached(base, adapters, None)), atol=1e-5)
    one = draw(base, Cached(base, adapters[:1], 2), 2)
    copies = draw(base, Cached(base, (adapters[0], adapters[0]), 2), 2)
    assert torch.equal(one, copies)


class Looking(GuidanceStrategy):
    """Moves the latents where a word's map is to grow, and looks at maps of the passes that draw."""

    def __init__(self, base: BaseModel, size: float) -> None:
        super().__init__(text_of(base, "a cat", "a boat"), text_of(base, "", ""), 3.0)
        self.size = size
        self.capture = Capture(layers_at(base.unet, 1), token_columns([[2]], TEXT_LENGTH))
        self.seen: list[Tensor] = []
        self.passes: Passes | None = None

    def begin(self, passes: Passes) -> None:
        self.passes = passes

    def prepare(self, request: DenoiseRequest, latents: Tensor) -> Tensor:
        assert self.passes is not None
        (output,) = self.passes.run(latents, self.passes.step(0), [Branch(self.condition, capture=self.capture)])
        assert output.prediction is not None
        return latents

    def refine_latents(self, step: Step, latents: Tensor) -> Tensor:
        assert self.passes is not None
        if step.index > 1:
            return latents
        branch = Branch(self.condition, capture=self.capture)
        with torch.enable_grad():
            moving = latents.clone().requires_grad_()
            with self.passes.open(moving, step, [branch], stops_early=True) as (output,):
                gradient = torch.autograd.grad(mean_map(output.maps.words).square().sum(), moving)[0]
        return latents + self.size * gradient / gradient.norm()

    def branches(self, step: Step) -> list[Branch]:
        return [Branch(self.negative), Branch(self.condition, capture=self.capture)]

    def observe(self, step: Step, outputs: Sequence[PassOutput]) -> None:
        assert outputs[0].maps is None
        self.seen.append(mean_map(outputs[1].maps.words).square().sum())


@pytest.mark.parametrize(("name", "scheduler"), [("sd15", "ddim"), ("sdxl", "euler")])
def test_a_strategy_moves_latents_by_the_gradient_of_maps(tmp_path: Path, name: str, scheduler: str):
    base, _ = base_of(name, tmp_path)
    still, moved = Looking(base, 0.0), Looking(base, 2.0)
    plain = draw(base, GuidanceStrategy(still.condition, still.negative, 3.0), 3, scheduler)
    torch.testing.assert_close(draw(base, still, 3, scheduler), plain, atol=1e-5, rtol=1e-5)
    draw(base, moved, 3, scheduler)
    assert len(moved.seen) == 3
    assert moved.seen[0] > still.seen[0]


def test_several_batches_with_checkpointing_cannot_be_open_together(setup: Setup):
    base, model = setup
    branches = [Branch(text_of(base, "a"), [Route(random_adapter(model, seed=seed))]) for seed in (0, 1)]
    passes = passes_of(base)
    base.unet.enable_gradient_checkpointing()
    try:
        with pytest.raises(ValueError, match="one after the other"), passes.open(latents_of(base), passes.step(0), branches):
            pass
    finally:
        base.unet.disable_gradient_checkpointing()


def test_forty_adapters_in_regions_of_their_own(tmp_path: Path):
    from studio.pipelines.denoising import Region

    base, model = base_of("embedded", tmp_path)
    masks = torch.zeros(40, 64, 64)
    for index, mask in enumerate(masks):
        mask[index // 8 * 12 : index // 8 * 12 + 12, index % 8 * 8 : index % 8 * 8 + 8] = 1.0
    regions = tuple(
        Region(mask, text_of(base, f"thing {index}"), [Route(random_adapter(model, seed=index, targets={"unet": ".*attn2.*"}))])
        for index, mask in enumerate(masks)
    )
    passes = passes_of(base, 64, 64)
    with torch.no_grad():
        (output,) = passes.run(latents_of(base, 64, 64), passes.step(0), [Branch(text_of(base, "things"), regions=regions)])
    assert output.prediction.isfinite().all()
    assert passes.report() == ()
