"""`studio bench gpu`: adapters on SDXL and SD1.5 at full size on a GPU, beside PEFT and LyCORIS' fused kernels, as one table.

Random weights in bfloat16. Each row is a session of its own: its arms take turns, the clock is the time until all work is done,
and a control (the reference against itself) says whether to believe it. Errors are relative, against the same in float64.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from studio.evals.bench_pipelines import random_loras, with_peft
from studio.evals.counted_models import SD15_UNET, SDXL_UNET
from studio.evals.peers_arms import peer_lokr_config, peer_lora_config
from studio.kernels.bench.case import Bar
from studio.kernels.bench.interleaved import Session, measure
from studio.kernels.bench.timing import Timed, clock_of, timed_row
from studio.pipelines.adapters import Adapter, Route, new_kronecker, new_lora
from studio.pipelines.adapters.folding import Merging
from studio.pipelines.adapters.patching import ResolvedRoutes
from studio.pipelines.denoising.acceleration import GraphedPass
from studio.pipelines.families import SDXL

BASE, AGAIN = "base", "base again"
RANK, NUM, FACTOR = 16, 8, 16
TYPE = "bfloat16"


@dataclass(frozen=True)
class Sizes:
    """What is measured, full size unless a test says otherwise.

    Attributes:
        sdxl, sd15: configurations of UNets. batch: of SDXL. pictures: of SD1.5, with an adapter each.
        rounds: how often arms take turns. attempts: sessions at most, until the control holds.
    """

    sdxl: Mapping[str, Any]
    sd15: Mapping[str, Any]
    batch: int = 2
    pictures: int = 8
    rounds: int = 9
    attempts: int = 3


FULL = Sizes(SDXL_UNET, SD15_UNET)


def gpu_rows(device: torch.device, *, sizes: Sizes = FULL, say: Callable[[str], None]) -> Iterator[Timed]:
    """All rows, one model after the other; each frees what it took."""
    for part in (_drawing, _lora_step, _kronecker_step, _eight_pictures):
        say(part.__name__.strip("_").replace("_", " "))
        yield from part(device, sizes)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _drawing(device: torch.device, sizes: Sizes) -> Iterator[Timed]:
    """SDXL with eight active adapters: eager, and as CUDA graphs where there are any; PEFT."""
    unet, inputs = _unet(sizes.sdxl, device), _inputs(sizes.sdxl, device, sizes.batch)
    routes = [Route(adapter.to(device), 1.0 / NUM) for adapter in random_loras(unet, NUM)]
    resolved = ResolvedRoutes({"unet": unet}, routes, "never")
    arms = {BASE: _pass(unet, inputs), AGAIN: _pass(unet, inputs), "ours": _pass(unet, inputs, resolved.open)}
    error = _error(unet, inputs, routes)
    session = _session(arms, device, sizes)
    yield timed_row("SDXL 1024²", "8 active adapters, eager", TYPE, Bar("ours", BASE, most=1.3), session, error)
    if device.type == "cuda":
        graphs = {name: _graphed(unet, inputs, opening) for name, opening in ((BASE, nullcontext), ("ours", resolved.open))}
        session = _session({BASE: graphs[BASE], AGAIN: graphs[BASE], "ours": graphs["ours"]}, device, sizes)
        yield timed_row("SDXL 1024²", "8 active adapters, graphs", TYPE, Bar("ours", BASE, most=1.15), session, error)
    ours = arms["ours"]
    peer = _unet(sizes.sdxl, device)
    theirs = _pass(with_peft(peer, NUM).to(device), inputs)
    session = _session({"ours": ours, "ours again": ours, "PEFT": theirs}, device, sizes, ("ours again", "ours"))
    yield timed_row("SDXL 1024²", "8 active adapters, eager", TYPE, Bar("PEFT", "ours", least=6.0), session)


def _lora_step(device: torch.device, sizes: Sizes) -> Iterator[Timed]:
    unet, peer = _unet(sizes.sdxl, device), _unet(sizes.sdxl, device)
    adapter = new_lora({"unet": unet}, {"unet": SDXL.attention_targets}, RANK, float(RANK)).to(device)
    peer.add_adapter(peer_lora_config(RANK))
    yield from _steps("LoRA", unet, adapter, peer, sizes, 1.4)


def _kronecker_step(device: torch.device, sizes: Sizes) -> Iterator[Timed]:
    unet, peer = _unet(sizes.sdxl, device), _unet(sizes.sdxl, device)
    adapter = new_kronecker({"unet": unet}, {"unet": SDXL.attention_targets}, (FACTOR, FACTOR)).to(device)
    peer.add_adapter(peer_lokr_config(FACTOR))
    yield from _steps("Kronecker", unet, adapter, peer, sizes, 2.5)


def _steps(name: str, unet: Any, adapter: Adapter, peer: Any, sizes: Sizes, least: float) -> Iterator[Timed]:
    """Forward and backward with full-precision factors on a base in bfloat16, ours and PEFT's."""
    device = next(unet.parameters()).device
    inputs = _inputs(sizes.sdxl, device, sizes.batch)
    for tensor in adapter.named_tensors().values():
        tensor.requires_grad_()
    peer.to(device)
    for parameter in peer.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data.bfloat16()
    resolved = ResolvedRoutes({"unet": unet}, [Route(adapter)], "never")
    ours = _step(unet, inputs, resolved.open)
    session = _session(
        {"ours": ours, "ours again": ours, "PEFT": _step(peer, inputs, nullcontext)}, device, sizes, ("ours again", "ours")
    )
    yield timed_row("SDXL 1024²", f"{name} training step", TYPE, Bar("PEFT", "ours", least=least), session)


def _eight_pictures(device: torch.device, sizes: Sizes) -> Iterator[Timed]:
    """SD1.5: pictures with an adapter each, in one call and one after the other."""
    unet, num = _unet(sizes.sd15, device), sizes.pictures
    loras = [adapter.to(device) for adapter in random_loras(unet, num)]
    chosen = torch.eye(num)
    by_row = ResolvedRoutes({"unet": unet}, [Route(a, rows=chosen[i]) for i, a in enumerate(loras)], "never")
    single = [ResolvedRoutes({"unet": unet}, [Route(adapter)], "never") for adapter in loras]
    together = _pass(unet, _inputs(sizes.sd15, device, num), by_row.open)
    passes = [_pass(unet, _inputs(sizes.sd15, device, 1), each.open) for each in single]
    session = _session(
        {"one call": together, "one call again": together, "sequential": lambda: [run() for run in passes]},
        device,
        sizes,
        ("one call again", "one call"),
    )
    size = f"{num} pictures, {num} adapters"
    yield timed_row("SD1.5 512²", size, TYPE, Bar("sequential", "one call", least=3.0), session)


def _session(
    arms: Mapping[str, Callable[[], Any]], device: torch.device, sizes: Sizes, control: tuple[str, str] = (AGAIN, BASE)
) -> Session:
    for arm in arms.values():
        for _ in range(2):
            arm()
    return measure(dict(arms), control, rounds=sizes.rounds, attempts=sizes.attempts, clock=clock_of(device))


def _pass(unet: Any, inputs: tuple[Any, ...], opening: Callable[[], AbstractContextManager[Any]] = nullcontext) -> Any:
    @torch.no_grad()
    def run() -> Tensor:
        with opening():
            return _forward(unet, inputs)

    return run


def _step(unet: Any, inputs: tuple[Any, ...], opening: Callable[[], AbstractContextManager[Any]]) -> Any:
    def run() -> None:
        with opening():
            _forward(unet, inputs).float().square().mean().backward()

    return run


def _graphed(unet: Any, inputs: tuple[Any, ...], opening: Callable[[], AbstractContextManager[Any]]) -> Any:
    latents, *rest = inputs

    def run(tensors: Mapping[str, Tensor]) -> Tensor:
        return _forward(unet, (tensors["latents"], *rest))

    with opening():
        graph = GraphedPass(run, {"latents": latents})

    def replay() -> Tensor:
        with opening():  # writes the factors, where others have been there since
            return graph({"latents": latents})

    return replay


@torch.no_grad()
def _error(unet: Any, inputs: tuple[Any, ...], routes: Sequence[Route]) -> tuple[float, float]:
    """Ours and the plain path's distance from float64, relative."""
    found = []
    modes: tuple[Merging, ...] = ("never", "always")
    for mode in modes:  # merged weights are the plain way to the same function
        with ResolvedRoutes({"unet": unet}, routes, mode).open():
            found.append(_forward(unet, inputs).double())
    wide = _unet(unet.config, inputs[0].device, torch.float64)
    wide.load_state_dict(unet.state_dict())
    doubled = [Route(route.adapter.to(dtype=torch.float64), route.strength) for route in routes]
    with ResolvedRoutes({"unet": wide}, doubled, "never").open():
        exact = _forward(wide, tuple(_as_double(each) for each in inputs))
    size = exact.norm()
    return float((found[0] - exact).norm() / size), float((found[1] - exact).norm() / size)


def _as_double(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_double(each) for name, each in value.items()}
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _forward(unet: Any, inputs: tuple[Any, ...]) -> Tensor:
    latents, timestep, text, added = inputs
    output: Tensor = unet(latents, timestep, text, added_cond_kwargs=added, return_dict=False)[0]
    return output


def _unet(config: Mapping[str, Any], device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A UNet with small random weights, frozen."""
    known = {name: value for name, value in config.items() if not name.startswith("_")}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**known)
    unet = nn.Module.to(unet, dtype=dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in unet.named_parameters():
        with torch.no_grad():
            if parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
    return unet.requires_grad_(False).eval()


def _inputs(config: Mapping[str, Any], device: torch.device, batch: int) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.bfloat16)

    side, added = int(config["sample_size"]), None
    if config.get("addition_embed_type") == "text_time":
        width = int(config["projection_class_embeddings_input_dim"]) - 6 * int(config["addition_time_embed_dim"])
        added = {"text_embeds": numbers(batch, width), "time_ids": numbers(batch, 6)}
    return (
        numbers(batch, 4, side, side),
        torch.tensor(500, device=device),
        numbers(batch, 77, config["cross_attention_dim"]),
        added,
    )
