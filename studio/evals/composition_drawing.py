"""The ways to draw a composed prompt, and what each costs: passes of the denoiser, FLOPs, CPU seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from studio.assets.world import Individual, Scene, SceneObject
from studio.assets.world.sampling import fit
from studio.composition.drawing import compile_scene, draw_batches
from studio.composition.plan import CompositionPlan
from studio.composition.plan_files import plan_from_values
from studio.composition.scene import make_scene
from studio.evals.composition_judge import individual_of
from studio.evals.composition_plan import INDIVIDUALS, ComposedPrompt, TrainedIndividual
from studio.evals.concept import through_autoencoder
from studio.pipelines.adapters import Adapter
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import UserError

Control = Literal["", "no adapters", "swapped"]


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to draw all prompts.

    Attributes:
        name: in tables and records. strategy, settings: of the plan. boxed: whether each thing has its box.
        strength: of every adapter. control: "no adapters": the classes' words and adapters at strength 0, where the strategy
            needs entries at all. "swapped": each individual by the adapter and the word of the next one of its class.
    """

    name: str
    strategy: str = "merge"
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    boxed: bool = False
    strength: float = 1.0
    control: Control = ""

    def facts(self) -> dict[str, Any]:
        """All that decides its pictures, as plain values."""
        return {
            "strategy": self.strategy,
            "settings": dict(self.settings),
            "boxed": self.boxed,
            "strength": self.strength,
            "control": self.control,
        }


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of the pictures of one prompt together; what is prepared once for them is in `preparing_seconds`.

    Attributes:
        passes: rows that entered the denoiser, guidance's included. whole_passes: of these, rows that reached its middle (the
            others began from a kept feature). cpu_seconds: all of it.
    """

    passes: int
    whole_passes: int
    preparing_seconds: float
    cpu_seconds: float

    def plus(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(
            passes=self.passes + other.passes,
            whole_passes=self.whole_passes + other.whole_passes,
            preparing_seconds=self.preparing_seconds + other.preparing_seconds,
            cpu_seconds=self.cpu_seconds + other.cpu_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Pictures of a prompt; none, and a sentence, where the strategy refuses the prompt."""

    pictures: tuple[Image.Image, ...] = ()
    cost: Cost | None = None
    refused: str = ""


def draw_prompt(
    base: BaseModel, prompt: ComposedPrompt, way: Way, adapters: Mapping[str, Adapter], *, num_seeds: int, steps: int
) -> Drawn:
    """Draw a prompt.

    Args:
        adapters: by the names of individuals and styles.
    """
    plan, names = plan_of(prompt, way, num_seeds=num_seeds, steps=steps)
    try:
        return _drawn(base, plan, [adapters[name] for name in names])
    except UserError as error:
        return Drawn(refused=str(error))


def _drawn(base: BaseModel, plan: CompositionPlan, adapters: Sequence[Adapter]) -> Drawn:
    """All pictures of a plan as one batch, and what they cost."""
    started = time.process_time()
    with counted_passes(base) as count:
        compiled = compile_scene(make_scene(plan, base, adapters))
        prepared, before = time.process_time(), dict(count)
        pictures = [picture for batch in draw_batches(compiled, batch_size=plan.num_images) for picture in batch]
    ended = time.process_time()
    cost = Cost(
        passes=count["all"] - before["all"],
        whole_passes=count["whole"] - before["whole"],
        preparing_seconds=round(prepared - started, 3),
        cpu_seconds=round(ended - started, 3),
    )
    return Drawn(pictures=tuple(pictures), cost=cost)


def count_flops(base: BaseModel, prompt: ComposedPrompt, way: Way, adapters: Mapping[str, Adapter], *, steps: int) -> int | None:
    """FLOPs of one picture (products, convolutions and attention, backward passes too, preparations not); None if refused."""
    plan, names = plan_of(prompt, way, num_seeds=1, steps=steps)
    acting = [adapters[name] for name in names]
    try:
        _drawn(base, plan.model_copy(update={"steps": 1}), acting)  # what adapters keep after their first use is not counted
        compiled = compile_scene(make_scene(plan, base, acting))
    except UserError:
        return None
    with FlopCounterMode(display=False) as counter:
        for _ in draw_batches(compiled, batch_size=1):
            pass
    return counter.get_total_flops()


def plan_of(prompt: ComposedPrompt, way: Way, *, num_seeds: int, steps: int) -> tuple[CompositionPlan, list[str]]:
    """The plan of a prompt drawn in some way, and the names of its adapters."""
    swapped = way.control == "swapped"
    things = [next_of_class(thing) if swapped else thing for thing in prompt.things]
    acting = replace(prompt, things=tuple(things))
    bare = way.control == "no adapters"
    entries: list[dict[str, Any]] = []
    names: list[str] = []
    if not bare or way.boxed:
        for index, thing in enumerate(things):
            entries.append(_entry(acting, index, way))
            names.append(thing.name)
    if prompt.style is not None and not bare:
        words = prompt.style.words
        entries.append({"role": "style", "words": words, "strength": way.strength, "name": prompt.style.name})
        names.append(prompt.style.name)
    values = {
        "prompt": prompt.plain_text if bare else acting.text,
        "entries": [{"adapter": f"{name}.safetensors"} | entry for name, entry in zip(names, entries, strict=True)],
        "strategy": {"name": way.strategy, **way.settings},
        "seed": prompt.seed,
        "num_images": num_seeds,
        "steps": steps,
    }
    return plan_from_values(values), names


def next_of_class(thing: TrainedIndividual) -> TrainedIndividual:
    """The next trained individual of its class, the first one after the last."""
    same = [other for other in INDIVIDUALS if other.class_name == thing.class_name]
    return same[(same.index(thing) + 1) % len(same)]


def _entry(prompt: ComposedPrompt, index: int, way: Way) -> dict[str, Any]:
    thing = prompt.things[index]
    bare = way.control == "no adapters"
    entry: dict[str, Any] = {"name": thing.name, "strength": 0.0 if bare else way.strength}
    entry["words"] = thing.class_name if bare else thing.words
    if bare:
        entry["occurrence"] = 1 + [other.class_name for other in prompt.things[:index]].count(thing.class_name)
    if way.boxed:  # with words of its own, a region holds a whole picture: in a control the base put no class into its box
        entry["region"] = {"box": list(prompt.boxes[index])}
    return entry


def draw_alone(
    base: BaseModel, prompt: ComposedPrompt, adapters: Mapping[str, Adapter], *, num_seeds: int, steps: int
) -> list[Drawn]:
    """Single-concept pictures: each thing of the prompt alone in the same place, and its style on a thing without an adapter."""
    parts = [(thing.words, thing.name, prompt.alone(thing.words)) for thing in prompt.things]
    if prompt.style is not None:
        words = prompt.style.words
        parts.append((words, prompt.style.name, f"{prompt.alone(prompt.things[0].class_name)}, {words}"))
    drawn = []
    for words, name, text in parts:
        values = {
            "prompt": text,
            "entries": [{"adapter": f"{name}.safetensors", "words": words}],
            "seed": prompt.seed,
            "num_images": num_seeds,
            "steps": steps,
        }
        drawn.append(_drawn(base, plan_from_values(values), [adapters[name]]))
    return drawn


def draw_truth(base: BaseModel, prompt: ComposedPrompt, num_seeds: int) -> list[Image.Image]:
    """The prompt's scene as it truly looks, through the autoencoder: every individual in its box."""
    return through_autoencoder(base, [true_scene(prompt, seed) for seed in range(num_seeds)])


def true_scene(prompt: ComposedPrompt, seed: int) -> Scene:
    """One such scene."""
    rng = np.random.default_rng([prompt.seed, seed, 53])
    objects = []
    for thing, box in zip(prompt.things, prompt.boxes, strict=True):
        width = box[2] - box[0]
        placed = fit(thing.class_name, box, 0.85 * width, width, rng)
        objects.append(_object(individual_of(thing), placed, bool(rng.random() < 0.5)))
    style = "flat" if prompt.style is None else prompt.style.style
    return Scene(prompt.background, style, tuple(objects), int(rng.integers(2**31)))


def _object(individual: Individual, box: tuple[float, float, float, float], flip: bool) -> SceneObject:
    look = individual.look
    return SceneObject(individual.class_name, None, look.pattern, box, look, individual.extras, flip)


@contextmanager
def counted_passes(base: BaseModel) -> Iterator[dict[str, int]]:
    """Inside the block, counts the rows that enter the denoiser ("all") and those that reach its middle ("whole")."""
    count = {"all": 0, "whole": 0}

    def counter(key: str) -> Any:
        def count_rows(module: torch.nn.Module, inputs: Sequence[torch.Tensor], output: torch.Tensor) -> None:
            count[key] += len(output)

        return count_rows

    unet: Any = base.unet
    hooks = [unet.conv_in.register_forward_hook(counter("all")), unet.mid_block.register_forward_hook(counter("whole"))]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()
