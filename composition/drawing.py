"""From a scene to pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from studio.composition.merged import MergeConfig, merged_adapter
from studio.composition.merging import Merged
from studio.composition.scene import Scene
from studio.composition.strategies import STRATEGIES, strategy_named
from studio.composition.strategy import configured
from studio.composition.thrift import Thrift, checkpointed
from studio.composition.views import OnPreview, Previewed
from studio.composition.zipped import ZipLoraConfig, zipped_adapter
from studio.pipelines.base_model import decode_latents
from studio.pipelines.denoising import DenoiseRequest, Strategy, denoise, make_scheduler
from studio.pipelines.errors import UserError
from studio.pipelines.generation import initial_noise, to_images


@dataclass(frozen=True, eq=False)
class Compiled:
    """A scene with the strategy that draws it. `notes`: what a person should know, a sentence each."""

    scene: Scene
    strategy: Strategy
    notes: tuple[str, ...]


def check_strategy(name: str, settings: dict[str, Any]) -> None:
    """`ConfigError` unless there is the strategy and it has these settings; nothing heavy happens."""
    configured(strategy_named(name), settings)


@torch.no_grad()
def compile_scene(scene: Scene) -> Compiled:
    """The strategy that the plan names, ready to draw: text is encoded, and what is merged beforehand is merged.

    Raises:
        ConfigError: there is no such strategy, or it has no such setting.
        UserError: it cannot draw this scene.
    """
    kind = strategy_named(scene.plan.strategy.name)
    config = configured(kind, scene.plan.strategy.settings)
    notes = list(scene.notes)
    with_region = [concept.title for concept in scene.concepts if concept.mask is not None]
    if with_region and not kind.uses_regions:
        raise UserError(
            f"The strategy {kind.name} knows no regions, and {with_region[0]} has one: leave it out, or use one of: "
            f"{', '.join(other.name for other in STRATEGIES if other.uses_regions)}."
        )
    strategy = kind.build(scene, config)
    notes += getattr(strategy, "notes", ())
    return Compiled(scene, strategy, tuple(notes))


def merged_of(scene: Scene) -> Merged:
    """The adapters of the scene as one, as the plan's strategy joins them: merge, selma (their mean) or ziplora.

    Raises:
        UserError: the plan's strategy makes no single adapter.
    """
    choice = scene.plan.strategy
    if choice.name == "selma":
        return merged_adapter(scene, MergeConfig(method="average"))
    if choice.name == "ziplora":
        return zipped_adapter(scene, ZipLoraConfig.model_validate(dict(choice.settings)))
    if choice.name != "merge":
        raise UserError(f"Only merge, selma and ziplora make one adapter of several; the plan's strategy is {choice.name}.")
    return merged_adapter(scene, MergeConfig.model_validate(dict(choice.settings)))


def draw_batches(
    compiled: Compiled,
    *,
    batch_size: int = 4,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    thrift: Thrift | None = None,
    on_preview: OnPreview | None = None,
) -> Iterator[list[Image.Image]]:
    """The plan's pictures, one batch after the other.

    Args:
        batch_size: pictures drawn at once; a picture depends on its own seed alone, within rounding.
        on_step: called with the steps done and the steps of all batches together. should_stop: asked before every step.
        thrift: ways to take less memory, with a batch size of their own.
        on_preview: called after every step with the pictures so far, and with masks and attention maps of the concepts.
    """
    if batch_size < 1:
        raise UserError(f"The batch size should be 1 or more, not {batch_size}.")
    thrift = Thrift(batch_size=batch_size) if thrift is None else thrift
    batch_size = thrift.batch_size
    scene = compiled.scene
    base, request = scene.base, scene.request
    strategy = compiled.strategy if on_preview is None else Previewed(compiled.strategy, scene, on_preview)
    starts = range(0, len(request.seeds), batch_size)
    for number, start in enumerate(starts):

        def count(done: int, steps: int, number: int = number) -> None:
            if on_step is not None:
                on_step(number * steps + done, len(starts) * steps)

        part = batch_request(scene, request.seeds[start : start + batch_size], thrift)
        with checkpointed(base.unet, thrift.checkpointing):
            latents = denoise(base, part, strategy, on_step=count, should_stop=should_stop)
        yield to_images(decode_latents(base, latents))


def batch_request(scene: Scene, seeds: Sequence[int], thrift: Thrift) -> DenoiseRequest:
    """What the loop is asked for one batch of pictures."""
    base, request = scene.base, scene.request
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return DenoiseRequest(
        noise=initial_noise(base, generators, request.height, request.width),
        height=request.height,
        width=request.width,
        scheduler=make_scheduler(base.scheduler, request.scheduler),
        num_steps=request.steps,
        generators=generators,
        most_rows=thrift.most_rows,
        captured_share=thrift.captured_share,
    )
