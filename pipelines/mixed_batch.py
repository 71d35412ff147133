"""Pictures that differ in prompt, seed and adapters, drawn in one forward.

What must agree is the shape of the work: size, steps, sampler and guidance. A picture is the same whoever it shares the
forward with, bit for bit, as long as the shape of the group is: how many rows, which row is its own, and which rows have the
same adapters (`RowPattern`). Text is encoded one prompt at a time for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image

from studio.pipelines.adapters import Route, patched
from studio.pipelines.adapters.row_weights import RowSet, can_fold_rows, can_pack_rows, patched_rows
from studio.pipelines.base_model import BaseModel, TextCondition, decode_latents, encode_negative, encode_text
from studio.pipelines.denoising import DenoiseRequest, Guessing, GuidanceStrategy, OnGuess, denoise, make_scheduler
from studio.pipelines.errors import UserError
from studio.pipelines.generation import GenerationRequest, check_adapters, initial_noise, resolve_request, to_images

KernelPath = Literal["plain", "folded", "routes", "plain packed", "folded packed"]
"""How adapters acted: there were none; folded into weights (`row_weights`); as sums of outputs (`patched`). Packed: with weights
laid out once by oneDNN (`kernels.packed_layers`)."""

RowPattern = tuple[int, ...]
"""For each row, the number of the set of adapters it has: (0, 0, 1, 1) is two pictures of one and two of another."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedRow:
    """One picture of a mixed batch. `routes`: its adapters, on the base's device and in its type, whole (no rows, no mask)."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SharedShape:
    """What all pictures of a mixed batch agree in. None means the base model's own default."""

    steps: int = 30
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None


@dataclass(frozen=True, eq=False)
class MixedPictures:
    """Pictures in the order of their rows, and the way in which their adapters acted."""

    images: list[Image.Image]
    kernel_path: KernelPath


def pattern_of(rows: Sequence[MixedRow]) -> RowPattern:
    """Which rows have the same adapters at the same strengths, numbered as they come."""
    keys = [tuple((id(route.adapter), float(route.strength)) for route in row.routes) for row in rows]
    order = list(dict.fromkeys(keys))
    return tuple(order.index(key) for key in keys)


@torch.no_grad()
def draw_mixed(
    base: BaseModel,
    rows: Sequence[MixedRow],
    shape: SharedShape,
    *,
    pattern: RowPattern | None = None,
    folds: bool = True,
    packs: bool = True,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_guess: OnGuess | None = None,
) -> MixedPictures:
    """Draw all rows at once.

    Args:
        pattern: which rows count as having the same adapters; by default `pattern_of(rows)`. Rows of one set must have the
            same. It rebuilds the shape of a group some of whose pictures are not wanted any more.
        folds: whether adapters may be folded into weights, where the weights are float32 and small.
        packs: whether weights may be laid out anew for a CPU, where the same holds.
        on_step, should_stop, on_guess: as for `generate_batches`.

    Raises:
        UserError: a value cannot be drawn, an adapter does not fit the base, or has parts that only act on whole batches and
            is not alone.
    """
    resolved = resolve_request(
        base,
        GenerationRequest(
            prompts=tuple(row.prompt for row in rows),
            seeds=tuple(row.seed for row in rows),
            steps=shape.steps,
            guidance_scale=shape.guidance_scale,
            height=shape.height,
            width=shape.width,
            scheduler=shape.scheduler,
        ),
    )
    for row in rows:
        check_adapters(base, row.routes)
    numbers = pattern_of(rows) if pattern is None else pattern
    assert len(numbers) == len(rows), f"a pattern of {len(numbers)} for {len(rows)} rows"
    texts = _Texts(base)
    condition = TextCondition.cat([texts.of(row, row.prompt) for row in rows])
    negative = TextCondition.cat([texts.of(row, row.negative_prompt, is_negative=True) for row in rows])
    strategy = GuidanceStrategy(condition, negative, resolved.guidance_scale)
    generators = [torch.Generator("cpu").manual_seed(row.seed) for row in rows]
    path, acting = _acting(base, rows, numbers, 2 if strategy.is_guided else 1, folds=folds, packs=packs)
    with acting:
        latents = denoise(
            base,
            DenoiseRequest(
                noise=initial_noise(base, generators, resolved.height, resolved.width),
                height=resolved.height,
                width=resolved.width,
                scheduler=make_scheduler(base.scheduler, resolved.scheduler),
                num_steps=resolved.steps,
                generators=generators,
            ),
            strategy if on_guess is None else Guessing(strategy, on_guess),
            on_step=on_step,
            should_stop=should_stop,
        )
    return MixedPictures(to_images(decode_latents(base, latents)), path)


class _Texts:
    """Features of single prompts as the text encoders make them with a row's adapters acting, each made once."""

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self._made: dict[object, TextCondition] = {}

    def of(self, row: MixedRow, text: str, *, is_negative: bool = False) -> TextCondition:
        acting = [route for route in row.routes if any(path.component != "unet" for path in route.adapter.patches)]
        key = (text, is_negative, tuple((id(route.adapter), float(route.strength)) for route in acting))
        if key not in self._made:
            encoders = {name: module for name, module in self.base.components().items() if name != "unet"}
            with patched(encoders, acting):
                encoded = encode_negative(self.base, text, 1) if is_negative else encode_text(self.base, [text])
            self._made[key] = encoded
        return self._made[key]


def _acting(
    base: BaseModel, rows: Sequence[MixedRow], numbers: RowPattern, num_branches: int, *, folds: bool, packs: bool
) -> tuple[KernelPath, AbstractContextManager[object]]:
    """How the rows' adapters act in the UNet, and the block in which they do."""
    members = {number: [index for index, each in enumerate(numbers) if each == number] for number in dict.fromkeys(numbers)}
    routes = {number: _in_unet(rows[indices[0]]) for number, indices in members.items()}
    packs = packs and can_pack_rows(base.unet, len(members))
    if not any(routes.values()):
        if not packs:
            return "plain", patched({}, ())
        whole = RowSet(tuple(range(num_branches * len(rows))), ())
        return "plain packed", patched_rows(base.unet, "unet", [whole], packs=True)
    if folds and can_fold_rows(base.unet, "unet", list(routes.values())):
        sets = []
        for number, indices in members.items():
            both = [branch * len(rows) + index for branch in range(num_branches) for index in indices]
            sets.append(RowSet(tuple(both), routes[number]))
        return "folded packed" if packs else "folded", patched_rows(base.unet, "unet", sets, packs=packs)
    if len(members) == 1:
        return "routes", patched({"unet": base.unet}, next(iter(routes.values())))
    placed = []
    for number, indices in members.items():
        chosen = torch.zeros(len(rows))
        chosen[indices] = 1.0
        placed += [Route(route.adapter, route.strength, rows=chosen.repeat(num_branches)) for route in routes[number]]
    return "routes", _whole({"unet": base.unet}, placed)


def _whole(components: dict[str, torch.nn.Module], routes: Sequence[Route]) -> AbstractContextManager[object]:
    """`patched`, refusing adapters of which something would be left out because it cannot be confined to rows."""
    from studio.pipelines.adapters.patching import ResolvedRoutes

    resolved = ResolvedRoutes(components, routes)
    missing = [line for line in resolved.router.report() if line.path.component in components]
    if missing:
        raise UserError(
            f"The adapter {missing[0].adapter!r} cannot share a forward with other adapters: {missing[0].reason}. "
            f"Draw its pictures alone."
        )
    return resolved.open()


def _in_unet(row: MixedRow) -> tuple[Route, ...]:
    return tuple(
        route
        for route in row.routes
        if float(route.strength) != 0.0 and any(path.component == "unet" for path in route.adapter.patches)
    )
