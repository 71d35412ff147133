"""`studio stylize`: the content of one picture in the style of another."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from studio.cli import drawing_options as options
from studio.cli.drawing import Precision, adapter_uses, check_files, draw, note_surprises, placement, say
from studio.cli.generate import parse_size


def stylize(
    content: Annotated[
        Path | None, typer.Option(help="A B-LoRA whose picture gives the content: what is shown.", show_default=False)
    ] = None,
    style: Annotated[
        Path | None, typer.Option(help="A B-LoRA whose picture gives the style: how it is drawn.", show_default=False)
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            help="What to draw, with the adapters' own words in it. With both a content and a style the default is "
            "'a CONTENT in STYLE style'.",
            show_default=False,
        ),
    ] = None,
    content_strength: Annotated[float, typer.Option(help="How strongly the content acts; 1 is as trained, 0 is off.")] = 1.0,
    style_strength: Annotated[float, typer.Option(help="How strongly the style acts; 1.1 makes it clearer.")] = 1.0,
    keep_colours: Annotated[
        bool,
        typer.Option(
            "--keep-colours/--no-keep-colours",
            help="Let the content picture's own style act a little too (.45): for things that are known by their colours.",
        ),
    ] = False,
    content_prompt: Annotated[
        str | None,
        typer.Option(
            help="What the content block reads instead of the prompt, as 'a CONTENT' alone; helps scenes.", show_default=False
        ),
    ] = None,
    style_prompt: Annotated[
        str | None, typer.Option(help="What the style block reads instead of the prompt.", show_default=False)
    ] = None,
    content_block: Annotated[
        str | None,
        typer.Option(
            help="Where the content half sits, for files that do not say so, as up_blocks.0.attentions.0.", show_default=False
        ),
    ] = None,
    style_block: Annotated[str | None, typer.Option(help="Where the style half sits, the same.", show_default=False)] = None,
    base: options.Base = None,
    negative: options.Negative = "",
    num_images: options.NumImages = 4,
    seed: options.Seed = None,
    steps: options.Steps = 30,
    guidance: options.Guidance = None,
    size: options.Size = None,
    scheduler: options.Scheduler = None,
    output: options.Output = Path("outputs/stylized"),
    batch_size: options.BatchSize = 4,
    device: options.Device = "auto",
    dtype: options.Dtype = Precision.AUTO,
    metadata: options.Metadata = True,
) -> None:
    """Draw the content of one picture in the style of another, or either of them with words.

    The files come from 'studio train b-lora', each from one picture, or from any B-LoRA tool. Give --content and --style for
    both from pictures; --content and a prompt for a style in words; --style and a prompt for a content in words. Seeds differ
    much here: look at several.

    Examples:

      studio stylize --content cat.safetensors --style ink.safetensors --style-strength 1.1

      studio stylize --content cat.safetensors --prompt "a ohwx made of gold" --keep-colours

      studio stylize --style ink.safetensors --prompt "a backpack in zwx style"
    """
    width, height = parse_size(size)
    files = {name: path for name, path in (("content", content), ("style", style)) if path is not None}
    check_files(list(files.values()))
    from studio.pipelines.adapters import Route, load_adapter
    from studio.pipelines.base_model import load_base
    from studio.pipelines.denoising import scheduler_title
    from studio.pipelines.generation import GenerationRequest
    from studio.workflows.stylize import StylizeWishes, plan_stylize

    if scheduler is not None:
        scheduler_title(scheduler)  # a wrong name is told before a large model is loaded
    place, weights = placement(device, dtype)
    adapters = {name: load_adapter(path) for name, path in files.items()}
    model = load_base(base, dtype=weights, device=place)
    wishes = StylizeWishes(
        content=adapters.get("content"),
        style=adapters.get("style"),
        content_strength=content_strength,
        style_strength=style_strength,
        keep_colours=keep_colours,
        prompt=prompt,
        content_prompt=content_prompt,
        style_prompt=style_prompt,
        content_block=content_block,
        style_block=style_block,
    )
    plan = plan_stylize(model, wishes)
    for note in plan.notes:
        say(f"note: {note}")
    first_seed = secrets.randbelow(2**32) if seed is None else seed
    request = GenerationRequest(
        prompts=(plan.prompt,) * num_images,
        seeds=tuple(first_seed + number for number in range(num_images)),
        negative_prompt=negative,
        steps=steps,
        guidance_scale=guidance,
        width=width,
        height=height,
        scheduler=scheduler,
        block_prompts={stack: (text,) * num_images for stack, text in plan.block_prompts.items()},
    )
    routes = [Route(route.adapter.to(place, weights), route.strength) for route in plan.routes]
    note_surprises(model, request, routes)
    named = [(files[half.of], half.strength) for half in plan.halves]
    uses = adapter_uses(named, [half.role for half in plan.halves]) if metadata else None
    draw(model, request, routes, uses, output, batch_size)
