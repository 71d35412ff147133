"""What the commands that draw pictures share: where the model goes, what to remark on, drawing and writing with progress."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

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


class Precision(StrEnum):
    """Types that the weights can have."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def check_files(paths: Sequence[Path]) -> None:
    """`MissingFileError` for the first path that is no file, before anything large is loaded."""
    for path in paths:
        if not path.is_file():
            raise MissingFileError(f"There is no adapter file {path}.")


def placement(device: str, precision: Precision) -> tuple[torch.device, torch.dtype]:
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


def use_attention(name: str | None) -> None:
    """Let base models that are loaded from now on, here and in processes that are started from here, compute with this backend.

    None leaves it to the environment.

    Raises:
        UserError: there is no backend of that name.
    """
    from studio.pipelines.denoising.attention.choice import ENVIRONMENT, check_name

    if name is not None:
        check_name(name)
        os.environ[ENVIRONMENT] = name


@contextmanager
def accelerated(base: BaseModel, *, compiles: bool, graphs: bool) -> Iterator[None]:
    """Inside the block the model runs compiled, from its first pass on, and its passes are recorded and replayed."""
    from studio.pipelines.denoising.acceleration import compile_blocks, recorded_passes

    if compiles:
        compile_blocks(base.unet)
    if not graphs:
        yield
        return
    with recorded_passes(base.unet, base.device) as note:
        if note:
            say(f"note: {note}")
        yield


def note_surprises(base: BaseModel, request: GenerationRequest, routes: Sequence[Route]) -> None:
    """Say on standard error what is allowed and probably not meant."""
    from studio.pipelines.encoding import num_tokens_cut_off

    for prompt in dict.fromkeys((*request.prompts, request.negative_prompt)):
        if cut_off := num_tokens_cut_off(base, prompt):
            say(f'note: the prompt "{prompt[:40]}…" is too long for the text encoder; its last {cut_off} tokens do nothing.')
    words = [*request.prompts, *(prompt for prompts in request.block_prompts.values() for prompt in prompts)]
    for info in (route.adapter.info for route in routes):
        if info.trigger and not any(info.trigger.lower() in prompt.lower() for prompt in words):
            say(f'note: the adapter {info.name!r} answers to "{info.trigger}", which is in none of the prompts.')
        if info.base_hash and base.content_hash and info.base_hash != base.content_hash:
            say(f"note: the adapter {info.name!r} was trained on another base model ({info.base_name}); it may work less well.")


def adapter_uses(named: Sequence[tuple[Path, float]], roles: Sequence[str | None] | None = None) -> list[AdapterUse]:
    """Files and strengths as pictures' records keep them; `roles` names the halves, one for each file."""
    from studio.pipelines.base_files.content_hash import file_sha256
    from studio.pipelines.pictures import AdapterUse, lora_short_hash

    return [
        AdapterUse(name=path.stem, strength=strength, sha256=file_sha256(path), short_hash=lora_short_hash(path), role=role)
        for (path, strength), role in zip(named, roles or [None] * len(named), strict=True)
    ]


def draw(
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
        with progress() as on_step:
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
def progress() -> Iterator[Callable[[int, int], None]]:
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
            say(f"step {done} of {total}, about {(now - started) / done * (total - done):.0f} s left")

    return on_step


def say(text: str) -> None:
    """A line on standard error."""
    typer.echo(text, err=True)
