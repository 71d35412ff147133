"""What adapters cost, counted at SDXL's full size, beside PEFT in the same run. No clock is read: the counts are the same
on every machine, and tests hold them to their limits.

One model serves all of our rows: the adapters on it change, the model and its memory do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoKrConfig, LoraConfig
from torch import Tensor

from studio.evals.counted_models import FEED_FORWARD_AND_PROJECTIONS, SDXL_UNET, FullSize
from studio.evals.tables import Cell, Table
from studio.kernels.bench.counting import Cost, count
from studio.kernels.sparse_update import state_bytes
from studio.pipelines.adapters import (
    Adapter,
    AdapterInfo,
    Factor,
    KroneckerPatch,
    ParameterPath,
    Route,
    new_lora,
    patched,
    target_modules,
)
from studio.pipelines.adapters.layers import layer_spec
from studio.pipelines.families import SDXL

RANK = 16
ATTENTION = SDXL.attention_targets
EVERYTHING = f"{ATTENTION}|{FEED_FORWARD_AND_PROJECTIONS}"
PEFT_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
PEFT_EVERYTHING = [*PEFT_ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
MIXED_RANKS = (16, 8, 4, 16, 12, 16, 8, 16)


@dataclass(frozen=True)
class Limits:
    """The most that a row may count; None for no limit."""

    ops: int | None = None
    gigabytes: float | None = None
    kept_gigabytes: float | None = None
    teraflops: float | None = None


@dataclass(frozen=True)
class Counted:
    """One row: what it is, its counts and PEFT's for the same, and its limits."""

    name: str
    ours: Cost
    theirs: Cost | None
    limits: Limits

    def misses(self) -> list[str]:
        """Which limits are not kept, in words."""
        pairs = [
            ("operations", self.ours.ops, self.limits.ops),
            ("GB", self.ours.bytes / 1e9, self.limits.gigabytes),
            ("GB kept", self.ours.kept_bytes / 1e9, self.limits.kept_gigabytes),
            ("TFLOP", self.ours.flops / 1e12, self.limits.teraflops),
        ]
        return [f"{self.name}: {value:.3f} {what}, limit {limit}" for what, value, limit in pairs if limit and value > limit]


class Ours:
    """Our adapters on one SDXL."""

    def __init__(self) -> None:
        self.model = FullSize.make(SDXL_UNET)

    def lora(self, rank: int = RANK, targets: str = ATTENTION, *, trains: bool = False) -> Adapter:
        """A LoRA without numbers."""
        adapter = new_lora(self.model.components(), {"unet": targets}, rank, float(rank))
        for tensor in adapter.named_tensors().values():
            tensor.requires_grad_(trains)
        return adapter

    def kronecker(self, sides: Callable[[int, int], tuple[int, int]]) -> Adapter:
        """A Kronecker adapter whose first factor has the size that `sides` says for (outputs, inputs)."""
        patches = {}
        for name, module in target_modules(self.model.unet, ATTENTION).items():
            spec = layer_spec(module)
            a_out, a_in = sides(spec.out_features, spec.in_features)
            second = torch.empty(spec.out_features // a_out, spec.in_features // a_in, device="meta")
            patches[ParameterPath("unet", name)] = KroneckerPatch(Factor(torch.empty(a_out, a_in, device="meta")), Factor(second))
        return Adapter(AdapterInfo(name="kronecker", type="lokr"), patches)

    def opened(self, routes: Sequence[Route]) -> AbstractContextManager[Any]:
        """Let them act."""
        return patched(self.model.components(), routes, "never")

    def drawing(self, routes: Sequence[Route], batch: int = 1) -> Cost:
        """One pass with these adapters, as at every step but the first."""
        run = self.model.without_gradients(batch)
        with self.opened(routes):
            run()
            return count(run)

    def training(self) -> Cost:
        """Forward and backward of one adapter, with the cast of its full-precision values that a step begins with."""
        adapter = self.lora(trains=True)
        factors = list(adapter.named_tensors().values())
        with self.opened([Route(adapter)]):
            self._step_optimizer(factors)
            return count(self.model.step, [*self.model.unet.parameters(), *factors])

    @staticmethod
    @torch.no_grad()
    def _step_optimizer(factors: Iterable[Tensor]) -> None:
        for tensor in factors:
            tensor.mul_(1.0)


def theirs(adapters: int = 1, targets: Sequence[str] = PEFT_ATTENTION, *, lokr: bool = False) -> FullSize:
    """SDXL with PEFT's adapters, in bfloat16, all active."""
    model = FullSize.make(SDXL_UNET)
    names = [f"adapter{index}" for index in range(adapters)]
    for name in names:
        config: Any = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(targets))
        if lokr:
            whole = 1_000_000  # a rank that leaves both factors whole
            config = LoKrConfig(r=whole, alpha=whole, target_modules=list(targets))
        model.unet.add_adapter(config, name)
    model.unet.set_adapter(names)
    for parameter in model.unet.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def their_training() -> Cost:
    """Their step as diffusers' examples train: adapters in float32 on a base in bfloat16."""
    model = theirs()
    for parameter in model.unet.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return count(model.step, model.unet.parameters())


def their_drawing(adapters: int = 1, targets: Sequence[str] = PEFT_ATTENTION, *, lokr: bool = False) -> Cost:
    """One pass of `theirs`."""
    return count(theirs(adapters, targets, lokr=lokr).without_gradients())


def four_boxes(side: int = 128) -> Tensor:
    """Masks `[4, side, side]` of boxes that cover the canvas and overlap by a fifth of it, sharing where they do."""
    reach = round(side * (0.5 + 0.047))  # (2 · 0.547)² = 1.2: the boxes' areas sum to 1.2 of the canvas
    masks = torch.zeros(4, side, side)
    for index, mask in enumerate(masks):
        rows = slice(0, reach) if index < 2 else slice(side - reach, side)
        columns = slice(0, reach) if index % 2 == 0 else slice(side - reach, side)
        mask[rows, columns] = 1.0
    return masks / masks.sum(dim=0)


def near_square(outputs: int, inputs: int) -> tuple[int, int]:
    """The sides of A that make both factors as square as they can be, A the smaller one."""
    return _half(outputs), _half(inputs)


def _half(size: int) -> int:
    return max(divisor for divisor in range(1, size + 1) if size % divisor == 0 and divisor * divisor <= size)


def counted_rows(*, with_peers: bool = True) -> list[Counted]:
    """All rows.

    Args:
        with_peers: also count PEFT's, which takes most of the time; without, only its two cheapest rows.
    """
    ours = Ours()
    one, eight = ours.lora(), [ours.lora() for _ in range(8)]
    single = ours.drawing([Route(one)])
    rows = torch.eye(8)
    mixed = [Route(ours.lora(rank), rows=rows[index]) for index, rank in enumerate(MIXED_RANKS)]
    boxes = [Route(adapter, mask=mask) for adapter, mask in zip(eight, four_boxes(), strict=False)]
    found = [
        Counted("forward, base", ours.drawing([]), None, Limits()),
        Counted("forward, 1 adapter", single, their_drawing(), Limits(2_000, 26.0)),
        Counted(
            "forward, 8 active adapters",
            ours.drawing([Route(adapter) for adapter in eight]),
            their_drawing(8) if with_peers else None,
            Limits(2_000, 26.5),
        ),
        Counted(
            "forward, 1 adapter with ff and proj",
            ours.drawing([Route(ours.lora(targets=EVERYTHING))]),
            their_drawing(1, PEFT_EVERYTHING) if with_peers else None,
            Limits(2_150, 30.0),
        ),
        Counted("LoRA training step", ours.training(), their_training(), Limits(8_500, 72.0, 5.0, 14.7)),
        Counted("8 images, 8 adapters of ranks 4 to 16, one call", ours.drawing(mixed, 8), None, Limits(2_000)),
        Counted("four boxes, 20 % overlap", ours.drawing(boxes), None, Limits(None, 1.25 * single.bytes / 1e9)),
    ]
    peer = their_drawing(lokr=True) if with_peers else None
    shapes: tuple[tuple[str, Callable[[int, int], tuple[int, int]], float], ...] = (
        ("near-square", near_square, 6.87),
        ("factor 8", lambda outputs, inputs: (8, 8), 6.97),
        ("64×4", lambda outputs, inputs: (64, 4), 6.83),
    )
    for name, sides, limit in shapes:
        cost = ours.drawing([Route(ours.kronecker(sides))])
        found.append(Counted(f"Kronecker forward, {name}", cost, peer, Limits(teraflops=limit)))
    return found


def sparse_share(num_weights: int = 1_000_000, density: float = 0.1) -> float:
    """Bytes of moments and positions of a sparse training, as a share of AdamW's two moments for all weights."""
    chosen = round(num_weights * density)
    dense = [torch.empty(num_weights, device="meta") for _ in range(2)]
    sparse = [torch.empty(chosen, device="meta") for _ in range(2)]
    return state_bytes(*sparse, torch.empty(chosen, dtype=torch.int32, device="meta")) / state_bytes(*dense)


def counted_table(rows: Sequence[Counted]) -> Table:
    """As a person reads it."""
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        theirs_cells: tuple[Cell, ...] = (None,) * 4 if row.theirs is None else _cells(row.theirs)
        verdict = "–" if row.limits == Limits() else "no" if row.misses() else "yes"
        limits = (row.limits.ops, row.limits.gigabytes, row.limits.kept_gigabytes, row.limits.teraflops)
        cells.append(
            (row.name, *_cells(row.ours), *theirs_cells, " / ".join("–" if x is None else f"{x:g}" for x in limits), verdict)
        )
    share = sparse_share()
    cells.append(("sparse training at 10 %: bytes over AdamW's", share, *(None,) * 7, "0.2", "yes" if share <= 0.2 else "no"))
    return Table(
        title="SDXL at 1024², bfloat16, rank 16 on attention: counted on the meta device",
        columns=("what", "ops", "GB", "GB kept", "TFLOP", "PEFT ops", "GB ", "GB kept ", "TFLOP ", "limits", "kept to"),
        rows=tuple(cells),
        notes=(
            "ops: ATen calls that compute or copy, attention as one; GB: inputs and outputs of each; our operators are opened",
            "training: the step's cast of full-precision factors is counted factor by factor; a GPU does it in a few launches",
        ),
    )


def _cells(cost: Cost) -> tuple[Cell, ...]:
    kept = f"{cost.kept_bytes / 1e9:.2f}" if cost.kept_bytes else None
    return cost.ops, f"{cost.bytes / 1e9:.2f}", kept, f"{cost.flops / 1e12:.3f}"
