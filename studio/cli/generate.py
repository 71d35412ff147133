"""`studio generate`: pictures from prompts."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.pipelines.errors import MissingFileError, UserError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from studio.pipelines.adapters import Route
    from studio.pipelines.base_model import BaseModel
    from studio.pipelines.generation import GenerationRequest
    from studio.pipelines.pictures import AdapterUse

_SECONDS_BETWEEN_LINES = 10.0
_SIZE = re.compile(r"(\d+)(?:\s*[x×*]\s*(\d+))?", re.IGNORECASE)


class Precision(StrEnum):
    """Types that the weights can have."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


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
    base: Annotated[
        str | None,
        typer.Option(
            help="Base model: a diffusers folder, a .safetensors checkpoint (SD 1.x, SDXL) or a hub id. "
            "By default the small model that comes with the studio.",
            show_default=False,
        ),
    ] = None,
    negative: Annotated[str, typer.Option(help="What to keep away from.", show_default=False)] = "",
    num_images: Annotated[int, typer.Option("--num-images", "-n", min=1, help="Pictures per prompt, with seeds in a row.")] = 1,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of the first picture: the same seed draws the same picture. Random by default.", show_default=False
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps: more is slower and a little finer.")] = 30,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="How closely to follow the prompt; 1 is not at all guided. By default 3 for the embedded model, 7.5 for "
            "SD 1.x and 2, 5 for SDXL.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH|N",
            help="Width and height in pixels, or the side of a square. By default the base model's.",
            show_default=False,
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Sampler: ddim, euler, euler_a or dpm++. By default the family's usual one.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")] = Path("outputs/pictures"),
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures drawn at once. Smaller needs less memory.")] = 4,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    dtype: Annotated[Precision, typer.Option(help="Type of the weights. auto: float32, and on CUDA bfloat16.")] = Precision.AUTO,
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="Write how it was made into each picture and beside it.")
    ] = True,
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
    _check_files([path for path, _ in named])
    from studio.pipelines.adapters import Route, load_adapter
    from studio.pipelines.base_model import load_base
    from studio.pipelines.denoising import scheduler_title
    from studio.pipelines.generation import GenerationRequest

    if scheduler is not None:
        scheduler_title(scheduler)  # a wrong name is told before a large model is loaded
    place, weights = _placement(device, dtype)
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
    _note_surprises(model, request, routes)
    uses = _adapter_uses(named) if metadata else None
    _draw(model, request, routes, uses, output, batch_size)


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


def _check_files(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise MissingFileError(f"There is no adapter file {path}.")


def _placement(device: str, precision: Precision) -> tuple[torch.device, torch.dtype]:
    """Where the model goes, and the type of its weights."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"There is no device {device!r} here. Use --device cpu, or auto.") from error
    if precision is Precision.AUTO:
        # SDXL's autoencoder and zero-terminal-SNR samplers overflow in float16; bfloat16 has float32's range.
        return place, torch.bfloat16 if place.type == "cuda" else torch.float32
    return place, getattr(torch, precision.value)


def _note_surprises(base: BaseModel, request: GenerationRequest, routes: Sequence[Route]) -> None:
    """Say on standard error what is allowed and probably not meant."""
    from studio.pipelines.encoding import num_tokens_cut_off

    for prompt in dict.fromkeys((*request.prompts, request.negative_prompt)):
        if cut_off := num_tokens_cut_off(base, prompt):
            _say(f'note: the prompt "{prompt[:40]}…" is too long for the text encoder; its last {cut_off} tokens do nothing.')
    for info in (route.adapter.info for route in routes):
        if info.trigger and not any(info.trigger.lower() in prompt.lower() for prompt in request.prompts):
            _say(f'note: the adapter {info.name!r} answers to "{info.trigger}", which is in none of the prompts.')
        if info.base_hash and base.content_hash and info.base_hash != base.content_hash:
            _say(f"note: the adapter {info.name!r} was trained on another base model ({info.base_name}); it may work less well.")


def _adapter_uses(named: Sequence[tuple[Path, float]]) -> list[AdapterUse]:
    from studio.pipelines.base_files.content_hash import file_sha256
    from studio.pipelines.pictures import AdapterUse, lora_short_hash

    return [
        AdapterUse(name=path.stem, strength=strength, sha256=file_sha256(path), short_hash=lora_short_hash(path))
        for path, strength in named
    ]


def _draw(
    base: BaseModel,
    request: GenerationRequest,
    routes: Sequence[Route],
    uses: Sequence[AdapterUse] | None,
    output: Path,
    batch_size: int,
) -> None:
    """Draw, write every batch as soon as it is there, and print the paths.

    Args:
        uses: the adapters, for the pictures' records; None writes bare pictures.
    """
    from studio.pipelines.generation import generate_batches, resolve_request
    from studio.pipelines.pictures import PictureRecord, contact_sheet, next_index, picture_name, save_picture

    resolved = resolve_request(base, request)
    records = [PictureRecord.of(base, resolved, number, uses or ()) for number in range(len(resolved.prompts))]
    first_index = next_index(output)
    images: list[Image.Image] = []
    written: list[Path] = []
    try:
        with _progress() as on_step:
            for batch in generate_batches(base, request, routes, batch_size=batch_size, on_step=on_step):
                for image in batch:
                    record = records[len(images)]
                    name = picture_name(first_index + len(images), record.seed, record.prompt, record.content_hash())
                    save_picture(output / name, image, None if uses is None else record)
                    images.append(image)
                    written.append(output / name)
        if len(images) > 1:
            path = output / f"{first_index:05d}-contact-sheet.png"
            save_picture(path, contact_sheet(images, [f"{record.seed}: {record.prompt}" for record in records]), None)
            written.append(path)
    finally:  # also what was done before Ctrl-C; after the bar, which would swallow the lines
        for path in written:
            typer.echo(path)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left on standard error; where that is no terminal, a line every ten seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _line_printer()
        return
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as progress:
        task = progress.add_task("drawing", total=None)

        def on_step(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield on_step


def _line_printer() -> Callable[[int, int], None]:
    started = last = time.monotonic()

    def on_step(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            _say(f"step {done} of {total}, about {(now - started) / done * (total - done):.0f} s left")

    return on_step


def _say(text: str) -> None:
    typer.echo(text, err=True)
