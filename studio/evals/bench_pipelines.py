"""`studio bench pipelines`: what adapters add to a whole UNet's time, beside PEFT, and how long switching and loading take."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from studio.evals.counted_models import SD15_UNET
from studio.evals.peers_arms import SMALL, Inputs, Size15, copies, make_unet, peer_lora_config
from studio.evals.tables import Cell, Table
from studio.kernels.bench.interleaved import Arm, Session, measure
from studio.pipelines.adapters import Adapter, AdapterInfo, Route, load_adapter, new_lora, save_adapter
from studio.pipelines.adapters.folding import Merging
from studio.pipelines.adapters.patching import ResolvedRoutes
from studio.pipelines.families import SD15

RANK, NUM = 16, 8
BASE, AGAIN = "base", "base again"


@dataclass(frozen=True)
class Asked:
    """A ratio and its limit: (arm, reference), at most or at least."""

    name: str
    arm: str
    reference: str
    most: float | None = None
    least: float | None = None


def random_loras(unet: nn.Module, count: int, rank: int = RANK) -> list[Adapter]:
    """LoRAs on attention with random numbers, frozen."""
    found = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        adapter = new_lora(
            {"unet": unet},
            {"unet": SD15.attention_targets},
            rank,
            float(rank),
            generator=generator,
            info=AdapterInfo(name=f"random {seed}", family="sd15"),
        )
        dtype = next(unet.parameters()).dtype
        for name, tensor in adapter.named_tensors().items():
            tensor.requires_grad_(False)
            if name.endswith("up"):
                tensor.normal_(0.0, 0.02, generator=generator)
        found.append(adapter.to(dtype=dtype))
    return found


def with_peft(unet: Any, count: int) -> Any:
    """PEFT's LoRAs of the same sizes, all active."""
    names = [f"adapter{index}" for index in range(count)]
    for name in names:
        unet.add_adapter(peer_lora_config(RANK), name)
    unet.set_adapter(names)
    return unet.to(next(unet.parameters()).dtype).requires_grad_(False).eval()


def opened_arm(unet: nn.Module, inputs: tuple[Tensor, ...], opening: Callable[[], AbstractContextManager[Any]]) -> Arm:
    """One pass with something open around it."""

    @torch.no_grad()
    def run() -> None:
        with opening():
            unet(*inputs, return_dict=False)

    return run


def time_unet(
    dtype: torch.dtype, *, size: Size15 = SMALL, rounds: int = 9, attempts: int = 3, say: Callable[[str], None]
) -> tuple[list[tuple[Cell, ...]], list[dict[str, Any]]]:
    """Rows of the table and raw sessions for one type of the weights."""
    name = str(dtype).removeprefix("torch.")
    mine, theirs = (unet.to(dtype) for unet in copies(make_unet(size), 2))
    inputs = _inputs(size, dtype, 2)
    loras = random_loras(mine, NUM)
    routes = [Route(adapter, 1.0 / NUM) for adapter in loras]
    modes: tuple[Merging, ...] = ("never", "always")
    resolved = {mode: ResolvedRoutes({"unet": mine}, routes, mode) for mode in modes}
    seconds = {mode: _seconds(each.open) for mode, each in resolved.items()}
    peft = with_peft(theirs, NUM)
    arms: dict[str, Arm] = {
        BASE: opened_arm(mine, inputs, _nothing),
        AGAIN: opened_arm(mine, inputs, _nothing),
        "8 adapters": opened_arm(mine, inputs, resolved["never"].open),
        "8 adapters, merged": opened_arm(mine, inputs, resolved["always"].open),
        "8 adapters, PEFT": opened_arm(peft, inputs, _nothing),
    }
    session, sessions = _measured(arms, (AGAIN, BASE), rounds, attempts, say)
    rows = _rows(
        name,
        session,
        [
            Asked("8 adapters, merged", "8 adapters, merged", BASE, most=1.02),
            Asked("8 adapters, not merged", "8 adapters", BASE, most=1.15 if dtype == torch.float32 else 1.25),
            Asked("8 adapters, PEFT", "8 adapters, PEFT", BASE),
        ],
    )
    rows.append((f"merging 8 adapters, {name}", f"{seconds['always']:.3f} s", None, None, None, "printed", "–"))
    raw = [{"what": f"8 adapters, {name}", "seconds": dict(each.seconds)} for each in sessions]
    if dtype == torch.bfloat16:
        more, sessions = _four_pictures(mine, loras[:4], size, rounds, attempts, say)
        rows += more
        raw += [{"what": f"4 pictures, {name}", "seconds": dict(each.seconds)} for each in sessions]
    return rows, raw


def _four_pictures(
    unet: nn.Module, loras: Sequence[Adapter], size: Size15, rounds: int, attempts: int, say: Callable[[str], None]
) -> tuple[list[tuple[Cell, ...]], list[Session]]:
    """Four pictures with an adapter each: in one call, and one after the other."""
    dtype = next(unet.parameters()).dtype
    four, one = _inputs(size, dtype, 4), _inputs(size, dtype, 1)
    by_row = ResolvedRoutes({"unet": unet}, [Route(a, rows=torch.eye(4)[i]) for i, a in enumerate(loras)], "never")
    single = [ResolvedRoutes({"unet": unet}, [Route(adapter)], "never") for adapter in loras]

    @torch.no_grad()
    def one_after_the_other() -> None:
        for each in single:
            with each.open():
                unet(*one, return_dict=False)

    arms: dict[str, Arm] = {
        "batch": opened_arm(unet, four, _nothing),
        "batch again": opened_arm(unet, four, _nothing),
        "one call": opened_arm(unet, four, by_row.open),
        "one after the other": one_after_the_other,
    }
    session, sessions = _measured(arms, ("batch again", "batch"), rounds, attempts, say)
    asked = [
        Asked("4 pictures, 4 adapters: one after the other over one call", "one after the other", "one call", least=1.30),
        Asked("4 pictures, 4 adapters in one call over no adapters", "one call", "batch", most=1.03),
    ]
    return _rows("bfloat16", session, asked), sessions


def time_switching(rounds: int = 9) -> list[tuple[Cell, ...]]:
    """Switching and loading at SD1.5's full size, in milliseconds of CPU time. Takes 3.5 GB."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD15_UNET)
    unet = unet.to_empty(device="cpu").requires_grad_(False).eval()
    loras = random_loras(unet, 2)
    two = [ResolvedRoutes({"unet": unet}, [Route(adapter)]) for adapter in loras]
    for each in two:
        with each.open():
            pass
    switches = [_seconds(two[index % 2].open) for index in range(2 * rounds)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_adapter(loras[0], path, "peft")

        def load_and_activate() -> AbstractContextManager[Any]:
            return ResolvedRoutes({"unet": unet}, [Route(load_adapter(path))]).open()

        loads = [_seconds(load_and_activate) for _ in range(rounds)]
    return [
        _milliseconds("adapter switch, SD1.5's full size", median(switches), 1.0, "PEFT 23–33"),
        _milliseconds("load from disk and activate", median(loads), 30.0, "PEFT 760"),
    ]


def time_embedded(rounds: int, attempts: int, say: Callable[[str], None]) -> tuple[list[tuple[Cell, ...]], list[Session]]:
    """The embedded base with four adapters of different kinds on everything that an adapter can change."""
    from studio.pipelines.adapters import new_kronecker
    from studio.pipelines.base_model import load_base

    base = load_base(None)
    targets = {"unet": base.family.adapter_targets}
    components = {"unet": base.unet}
    fresh = [
        new_lora(components, targets, 16, 16.0),
        new_lora(components, targets, 4, 4.0),
        new_lora(components, targets, 8, 8.0, dora=True),
        new_kronecker(components, targets, (4, 4)),
    ]
    generator = torch.Generator().manual_seed(0)
    for adapter in fresh:
        for name, tensor in adapter.named_tensors().items():
            tensor.requires_grad_(False)
            if name.endswith(("up", "second")):
                tensor.normal_(0.0, 0.01, generator=generator)
    config: Any = base.unet.config
    side = config.sample_size
    inputs = (torch.randn(2, config.in_channels, side, side), torch.tensor(500), torch.randn(2, 32, config.cross_attention_dim))
    resolved = ResolvedRoutes(components, [Route(replace(adapter), 0.25) for adapter in fresh])
    arms = {
        BASE: opened_arm(base.unet, inputs, _nothing),
        AGAIN: opened_arm(base.unet, inputs, _nothing),
        "4 mixed": opened_arm(base.unet, inputs, resolved.open),
    }
    session, sessions = _measured(arms, (AGAIN, BASE), rounds, attempts, say)
    return _rows(
        "float32", session, [Asked("embedded base, 4 mixed adapters on all layers", "4 mixed", BASE, most=1.3)]
    ), sessions


def pipelines_table(rows: Sequence[tuple[Cell, ...]]) -> Table:
    """As a person reads it."""
    return Table(
        title=f"Adapters on a UNet of SD1.5's structure, rank {RANK}, CPU time on one thread",
        columns=("what", "paired median", "CPU", "min", "control", "bar", "kept"),
        rows=tuple(rows),
        notes=("ratios of arms that take turns; the control is the reference against itself and has to be in 0.97 to 1.03",),
    )


def _rows(dtype: str, session: Session, asked: Sequence[Asked]) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for each in asked:
        ratio = session.ratio(each.arm, each.reference)
        bar = (
            "–"
            if each.most is None and each.least is None
            else f"≤ {each.most:g}"
            if each.most is not None
            else f"≥ {each.least:g}"
        )
        kept = (each.most is None or ratio.paired <= each.most) and (each.least is None or ratio.paired >= each.least)
        verdict = "–" if bar == "–" else ("yes" if kept else "no") if session.valid else "noise"
        rows.append((f"{each.name}, {dtype}", ratio.paired, ratio.cpu, ratio.minimum, session.control.paired, bar, verdict))
    return rows


def _measured(
    arms: Mapping[str, Arm], control: tuple[str, str], rounds: int, attempts: int, say: Callable[[str], None]
) -> tuple[Session, list[Session]]:
    for arm in arms.values():
        arm()
    sessions: list[Session] = []

    def on_round(done: int, total: int) -> None:
        say(f"round {done} of {total}")

    session = measure(arms, control, rounds=rounds, attempts=attempts, on_session=sessions.append, on_round=on_round)
    return session, sessions


def _seconds(opening: Callable[[], AbstractContextManager[Any]]) -> float:
    """CPU seconds until what is opened acts."""
    start = time.process_time()
    with opening():
        return time.process_time() - start


def _milliseconds(what: str, seconds: float, most: float, theirs: str) -> tuple[Cell, ...]:
    kept = "yes" if 1e3 * seconds <= most else "no"
    return (f"{what} ({theirs})", f"{1e3 * seconds:.2f} ms", None, None, None, f"≤ {most:g} ms", kept)


def _inputs(size: Size15, dtype: torch.dtype, batch: int) -> tuple[Tensor, ...]:
    made = Inputs.make(size)
    latents = made.latents.repeat(batch, 1, 1, 1)[:batch].to(dtype)
    return latents, made.timesteps[:1].expand(batch), made.prompt_embeds.repeat(batch, 1, 1)[:batch].to(dtype)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
