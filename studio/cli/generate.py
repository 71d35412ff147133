"""`studio generate`: pictures from prompts."""

from __future__ import annotations

import math
import re
import secrets
from pathlib import Path
from typing import Annotated

import typer

from studio.cli import drawing_options as options
from studio.cli.drawing import (
    Precision,
    accelerated,
    adapter_uses,
    check_files,
    draw,
    note_surprises,
    placement,
    use_attention,
)
from studio.pipelines.errors import UserError

_SIZE = re.compile(r"(\d+)(?:\s*[x×*]\s*(\d+))?", re.IGNORECASE)


def generate(
    prompt: Annotated[
        list[str], typer.Option("--prompt", "-p", help="What to draw. Repeat the option for several prompts.", show_default=False)
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter",
            "-a",
            metavar="FILE[:STRENGTH]",
            help="An adapter file, and how strongly it acts: 0 is off, 1 (the default) is as trained. Repeat for several.",
            show_default=False,
        ),
    ] = None,
    base: options.Base = None,
    negative: options.Negative = "",
    num_images: options.NumImages = 1,
    seed: options.Seed = None,
    steps: options.Steps = 30,
    guidance: options.Guidance = None,
    size: options.Size = None,
    scheduler: options.Scheduler = None,
    output: options.Output = Path("outputs/pictures"),
    batch_size: options.BatchSize = 4,
    device: options.Device = "auto",
    dtype: options.Dtype = Precision.AUTO,
    attention: options.Attention = None,
    compile_: options.Compile = False,
    cuda_graphs: options.Graphs = False,
    metadata: options.Metadata = True,
) -> None:
    """Make pictures from prompts, with or without adapters.

    An adapter's file comes from `studio train` or from anywhere else; its trigger words (see `studio inspect`) belong into
    the prompt. The paths of the pictures are printed on standard output, all else on standard error. With more than one
    picture there is also a contact sheet. Every PNG holds its settings as text that A1111 and ComfyUI read, and has them
    beside it as JSON.

    Examples:

      studio generate -p "a red cat left of a boat, watercolour" -n 4

      studio generate -p "a photo of ohwx robot in the snow" -a robot.safetensors:0.8 --seed 7
    """
    width, height = parse_size(size)
    named = [parse_adapter(text) for text in adapter or []]
    check_files([path for path, _ in named])
    use_attention(attention)
    from studio.pipelines.adapters import Route, load_adapter
    from studio.pipelines.base_model import load_base
    from studio.pipelines.denoising import scheduler_title
    from studio.pipelines.generation import GenerationRequest

    if scheduler is not None:
        scheduler_title(scheduler)  # a wrong name is told before a large model is loaded
    place, weights = placement(device, dtype)
    adapters = [load_adapter(path) for path, _ in named]
    model = load_base(base, dtype=weights, device=place)
    first_seed = secrets.randbelow(2**32) if seed is None else seed
    request = GenerationRequest(
        prompts=tuple(text for text in prompt for _ in range(num_images)),
        seeds=tuple(first_seed + number for _ in prompt for number in range(num_images)),
        negative_prompt=negative,
        steps=steps,
        guidance_scale=guidance,
        width=width,
        height=height,
        scheduler=scheduler,
    )
    routes = [Route(each.to(place, weights), strength) for each, (_, strength) in zip(adapters, named, strict=True)]
    note_surprises(model, request, routes)
    uses = adapter_uses(named) if metadata else None
    with accelerated(model, compiles=compile_, graphs=cuda_graphs):
        draw(model, request, routes, uses, output, batch_size)


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """(width, height) of "640x480", "640" or None; `UserError` for anything else."""
    if text is None:
        return None, None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UserError(f"The size {text!r} should be a width and a height such as 640x480, or one number for a square.")
    return int(match[1]), int(match[2] or match[1])


def parse_adapter(text: str) -> tuple[Path, float]:
    """The file and the strength of "FILE" or "FILE:STRENGTH". Colons in the path, as in C:\\robot.safetensors, are kept."""
    head, colon, tail = text.rpartition(":")
    if not colon or Path(text).is_file():
        return Path(text), 1.0
    try:
        strength = float(tail)
    except ValueError:
        if Path(head).is_file():
            raise UserError(f"The strength {tail!r} of {head} should be a number, such as {head}:0.8.") from None
        return Path(text), 1.0
    if not math.isfinite(strength):
        raise UserError(f"The strength of {head} should be a finite number, not {tail}.")
    return Path(head), strength
