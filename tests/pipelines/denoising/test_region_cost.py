"""What regions cost, counted at SDXL's full size on the meta device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from studio.pipelines.adapters import Route, new_lora
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import (
    Branch,
    Capture,
    DenoiseRequest,
    Isolation,
    Passes,
    Region,
    UNetDenoiser,
    layers_at,
    token_columns,
)
from studio.pipelines.encoding import TextCondition
from studio.pipelines.families import SDXL
from tests.support.tiny_models import sdxl_unet_config


def text(seed: int = 0) -> TextCondition:
    return TextCondition(torch.empty(1, 77, 2048, device="meta"), torch.empty(1, 1280, device="meta"))


@pytest.mark.bench
def test_four_adapters_in_quarters_cost_little_more_than_one_everywhere(capsys: pytest.CaptureFixture[str]):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**sdxl_unet_config())
        base: Any = BaseModel(replace(SDXL, text_encoders=()), unet, torch.nn.Identity(), (), (), DDIMScheduler(), "meta", 1024)
        adapter = new_lora({"unet": unet}, {"unet": SDXL.adapter_targets}, 16, 16.0, generator=torch.Generator("cpu"))
    quarters = torch.zeros(4, 1024, 1024)
    for index, quarter in enumerate(quarters):
        quarter[index // 2 * 512 :, index % 2 * 512 :][:512, :512] = 1.0
    routes = [[Route(adapter)] for _ in quarters]
    regions = tuple(Region(mask, text(), route) for mask, route in zip(quarters, routes, strict=True))
    capture = Capture(layers_at(unet, 2), token_columns([[2]], 77).to("meta"))
    passes = {
        "base": Branch(text()),
        "one adapter": Branch(text(), routes[0]),
        "four in quarters": Branch(text(), regions=regions),
        "four in quarters, attention isolated": Branch(text(), regions=regions, isolation=Isolation()),
        "maps at 32 × 32": Branch(text(), capture=capture),
    }
    flops = {name: count(base, branch, stops_early=branch.capture is not None) for name, branch in passes.items()}
    with capsys.disabled():
        for name, number in flops.items():
            print(f"\n  {name:40} {number / 1e12:.2f} TFLOP  {number / flops['one adapter']:.3f}", end="")
    assert flops["four in quarters"] < 1.35 * flops["one adapter"]
    assert flops["four in quarters, attention isolated"] < flops["four in quarters"]
    assert flops["maps at 32 × 32"] < 0.81 * flops["base"]


def count(base: Any, branch: Branch, *, stops_early: bool) -> int:
    """FLOPs of one pass at 1024 × 1024, attention included, with the text's part of it."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(2)
    latents = torch.empty(1, 4, 128, 128, device="meta")
    request = DenoiseRequest(noise=latents, height=1024, width=1024, scheduler=scheduler, num_steps=2, generators=[])
    passes = Passes(_OnMeta(base), request)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        with passes.open(latents, passes.step(0), [branch], stops_early=stops_early):
            pass
    return counter.get_total_flops()


class _OnMeta(UNetDenoiser):
    """SDXL's UNet without numbers, and without text encoders."""

    def added_conditions(self, call: Any) -> dict[str, Tensor]:
        assert call.condition.pooled is not None
        return {"text_embeds": call.condition.pooled, "time_ids": torch.empty(len(call.latents), 6, device="meta")}
