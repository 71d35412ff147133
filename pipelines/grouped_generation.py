"""Pictures with different adapters in one pass: every row of the batch has its own prompt, seed, adapters and strengths.

The base's weights are read once for all of them; each adapter is computed on its own rows only (S-LoRA's idea, Sheng et al.
2023, arXiv 2311.03285, with pictures for sentences). What must be one for a group is what decides the batch's shape and
schedule: base, size, steps, sampler, guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from studio.pipelines.adapters import Adapter, Route, patched
from studio.pipelines.adapters.patching import acts_per_position, module_at
from studio.pipelines.base_model import BaseModel, TextCondition, decode_latents, encode_negative, encode_text
from studio.pipelines.denoising import Branch, DenoiseRequest, GuidanceStrategy, Step, denoise, make_scheduler
from studio.pipelines.errors import UserError
from studio.pipelines.generation import (
    GenerationRequest,
    ResolvedRequest,
    check_adapters,
    initial_noise,
    resolve_request,
    to_images,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureOrder:
    """One row of a group. `adapters`: (adapter, strength) pairs; the same `Adapter` object in several orders is computed once."""

    prompt: str
    seed: int
    negative_prompt: str = ""
    adapters: tuple[tuple[Adapter, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class GroupShape:
    """What all pictures of a group have in common; None means the base model's own default."""

    steps: int = 30
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    scheduler: str | None = None


def can_share(base: BaseModel, adapter: Adapter) -> bool:
    """Whether all of the adapter can be confined to single rows: changes of biases, norms and embeddings cannot.

    Raises:
        AdapterMismatchError: it names layers that the base does not have.
    """
    components = base.components()
    return all(
        acts_per_position(patch, module_at(components[path.component], path, adapter.info.name), path)
        for path, patch in adapter.patches.items()
        if path.component in components
    )


def resolve_group(base: BaseModel, orders: Sequence[PictureOrder], shape: GroupShape) -> ResolvedRequest:
    """The group with every default filled in and every value checked; what pictures' records are made of.

    `negative_prompt` is the first order's; those of the others stand in the orders.

    Raises:
        UserError: a value cannot be drawn. AdapterMismatchError: an adapter is for another family.
    """
    request = GenerationRequest(
        prompts=tuple(order.prompt for order in orders),
        seeds=tuple(order.seed for order in orders),
        negative_prompt=orders[0].negative_prompt if orders else "",
        steps=shape.steps,
        guidance_scale=shape.guidance_scale,
        height=shape.height,
        width=shape.width,
        scheduler=shape.scheduler,
    )
    resolved = resolve_request(base, request)
    check_adapters(base, group_routes(orders))
    return resolved


def draw_group(
    base: BaseModel,
    orders: Sequence[PictureOrder],
    shape: GroupShape,
    *,
    rows: int | None = None,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Image.Image]:
    """The pictures of all orders, in their order, drawn in one batch.

    Args:
        rows: pictures in the batch; a shorter group is filled up with its last order, whose extra pictures are dropped, so that
            a group's arithmetic does not depend on how many of it were wanted.
        on_step, should_stop: as for `generate`.

    Raises:
        UserError: as `resolve_group`; or an adapter that acts on whole batches only is in a group with others.
    """
    resolved = resolve_group(base, orders, shape)
    filled = [*orders, *[orders[-1]] * (0 if rows is None else max(0, rows - len(orders)))]
    _refuse_unshareable(base, filled)
    generators = [torch.Generator("cpu").manual_seed(order.seed) for order in filled]
    with torch.no_grad():
        condition, negative = _encode(base, filled)
        alone = _whole_batch_routes(filled)
        strategy = _GroupStrategy(condition, negative, resolved.guidance_scale, () if alone else tuple(group_routes(filled)))
        request = DenoiseRequest(
            noise=initial_noise(base, generators, resolved.height, resolved.width),
            height=resolved.height,
            width=resolved.width,
            scheduler=make_scheduler(base.scheduler, resolved.scheduler),
            num_steps=resolved.steps,
            generators=generators,
        )
        with patched({"unet": base.unet}, alone):
            latents = denoise(base, request, strategy, on_step=on_step, should_stop=should_stop)
        return to_images(decode_latents(base, latents[: len(orders)]))


def group_routes(orders: Sequence[PictureOrder]) -> list[Route]:
    """A route for each adapter, with the rows it acts on and how strongly."""
    adapters: dict[int, Adapter] = {}
    strengths: dict[int, Tensor] = {}
    for row, order in enumerate(orders):
        for adapter, strength in order.adapters:
            adapters[id(adapter)] = adapter
            strengths.setdefault(id(adapter), torch.zeros(len(orders)))[row] += strength
    return [_route(adapters[key], strengths[key]) for key in adapters if bool((strengths[key] != 0).any())]


class _GroupStrategy(GuidanceStrategy):
    """Guidance with adapters on single rows, the same in both halves."""

    def __init__(
        self, condition: TextCondition, negative: TextCondition, guidance_scale: float, routes: tuple[Route, ...]
    ) -> None:
        super().__init__(condition, negative, guidance_scale)
        self._routes = routes

    def branches(self, step: Step) -> Sequence[Branch]:
        """Those of guidance, with the routes."""
        return [Branch(branch.condition, routes=self._routes) for branch in super().branches(step)]


def _route(adapter: Adapter, strengths: Tensor) -> Route:
    """With one number where all rows have the same, and with rows where some have none."""
    on = strengths != 0
    number = float(strengths[on][0])
    if bool((strengths[on] == number).all()):
        return Route(adapter, number, rows=None if bool(on.all()) else on.float())
    return Route(adapter, strengths)


def _whole_batch_routes(orders: Sequence[PictureOrder]) -> list[Route]:
    """The routes, if every row has the same: they act on the whole batch then, at less cost and whatever their kind."""
    first = [(id(adapter), strength) for adapter, strength in orders[0].adapters]
    if any([(id(adapter), strength) for adapter, strength in order.adapters] != first for order in orders):
        return []
    return [Route(adapter, strength) for adapter, strength in orders[0].adapters]


def _refuse_unshareable(base: BaseModel, orders: Sequence[PictureOrder]) -> None:
    if _whole_batch_routes(orders) or not any(order.adapters for order in orders):
        return
    for adapter in {id(adapter): adapter for order in orders for adapter, _ in order.adapters}.values():
        if not can_share(base, adapter):
            raise UserError(
                f"The adapter {adapter.info.name!r} changes biases, norms or embeddings, which act on whole batches: draw its "
                "pictures in a group of their own."
            )


def _encode(base: BaseModel, orders: Sequence[PictureOrder]) -> tuple[TextCondition, TextCondition]:
    """Text of every row with its own adapters in the text encoders, and of every negative prompt."""
    encoders: Mapping[str, nn.Module] = {name: module for name, module in base.components().items() if name != "unet"}
    touched = any(path.component in encoders for order in orders for adapter, _ in order.adapters for path in adapter.patches)
    if not touched:
        prompts = list(dict.fromkeys(order.prompt for order in orders))
        condition = encode_text(base, prompts).rows([prompts.index(order.prompt) for order in orders])
        return condition, _negatives(base, orders)
    with patched(encoders, _whole_batch_routes(orders) or group_routes(orders)):
        condition = encode_text(base, [order.prompt for order in orders])
        negative = encode_text(base, [order.negative_prompt for order in orders])
    return condition, _without_empty(base, negative, [order.negative_prompt for order in orders])


def _negatives(base: BaseModel, orders: Sequence[PictureOrder]) -> TextCondition:
    texts = list(dict.fromkeys(order.negative_prompt for order in orders))
    known = TextCondition.cat([encode_negative(base, text, 1) for text in texts])
    return known.rows([texts.index(order.negative_prompt) for order in orders])


def _without_empty(base: BaseModel, negative: TextCondition, texts: Sequence[str]) -> TextCondition:
    """Zeros where there is no negative prompt, if the model was trained so; see `encode_negative`."""
    if not base.zero_empty_negative:
        return negative
    kept = torch.tensor([float(bool(text)) for text in texts], device=base.device, dtype=negative.prompt_embeds.dtype)
    pooled = None if negative.pooled is None else negative.pooled * kept[:, None]
    return TextCondition(negative.prompt_embeds * kept[:, None, None], pooled)
