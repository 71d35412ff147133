"""`studio train diffusekrona`."""

from __future__ import annotations

from typing import Annotated

import typer

from studio.cli import train_options as options
from studio.cli.train_run import run_method


def diffusekrona(
    images: options.Images = None,
    class_noun: options.ClassNoun = None,
    token: options.Token = None,
    base: options.Base = None,
    output: options.Output = None,
    factors: Annotated[
        str | None,
        typer.Option(
            metavar="OUTxIN",
            help="Size of the small factor; it must divide the layers' channels, and OUT·IN decides how small the adapter gets. "
            "16x16 loads in diffusers too; the paper's best is 64x4.",
            show_default="16x16; 4x4 on the embedded model",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Training steps; a simple subject needs about 500.", show_default="by number of photos")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Useful from 1e-4 to 1e-3: above, photos are learned by heart.", show_default="5e-4 on SD and SDXL"),
    ] = None,
    batch_size: options.BatchSize = None,
    resolution: options.Resolution = None,
    prior: options.Prior = None,
    seed: options.Seed = None,
    device: options.Device = None,
    config: options.Config = None,
    settings: options.Settings = None,
    resume: options.Resume = None,
    redact: options.Redact = "none",
    attention: options.Attention = None,
) -> None:
    """Learn one particular thing from a few photos, in an adapter of Kronecker products.

    Each layer's change is the product of two small matrices, in which every number of the one scales a copy of the other. So
    a change of high rank fits into few numbers: on SDXL 3.9 million, where a LoRA of rank 4 has 5.8. Everything else is as in
    'studio train dreambooth-lora'.

    ComfyUI and A1111 load the kohya file as a LyCORIS LoKr; diffusers loads the other one into its UNet. For anything else:
    studio export FILE --format lora

    **Example:** studio train diffusekrona --images photos/rex --class-noun dog

    The paper's own shape: studio train diffusekrona --images photos/rex --class-noun dog --base SDXL --factors 64x4
    """
    overrides = {
        "concept.images": images,
        "concept.class_noun": class_noun,
        "concept.token": token,
        "model.base": base,
        "run.output_dir": output,
        "krona.factors": factors,
        "schedule.steps": steps,
        "optimizer.learning_rate": learning_rate,
        "data.batch_size": batch_size,
        "data.resolution": resolution,
        "loss.prior": prior,
        "run.seed": seed,
        "run.device": device,
    }
    run_method("diffusekrona", config, overrides, settings, resume, redact, attention)
