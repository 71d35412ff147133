"""`studio train sara`."""

from __future__ import annotations

from typing import Annotated

import typer

from studio.cli import train_options as options
from studio.cli.train_run import run_method

Threshold = Annotated[
    float | None,
    typer.Option(
        help="Weights smaller than this train. Made for Stable Diffusion, where 2e-4, 8e-4 and 2e-3 are the paper's sizes; "
        "the learning rate follows from it.",
        show_default="by base model",
    ),
]
Density = Annotated[
    float | None,
    typer.Option(help="Instead: train this share of each layer, its smallest weights.", show_default="by base model"),
]
Scope = Annotated[
    str | None,
    typer.Option(
        help="'layers': attention and feed-forwards, what a few photos need. 'all': every tensor of the denoiser, as in the "
        "paper, for styles with hundreds of pictures.",
        show_default="layers",
    ),
]


def sara(
    images: options.Images = None,
    class_noun: options.ClassNoun = None,
    token: options.Token = None,
    base: options.Base = None,
    output: options.Output = None,
    steps: options.Steps = None,
    learning_rate: options.LearningRate = None,
    threshold: Threshold = None,
    density: Density = None,
    scope: Scope = None,
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
    """Train the weights that do nothing (SaRA): best for styles, gentle with prompts.

    Many weights of a trained model are so small that it draws the same without them. These are what trains; all others
    stay. The paper finds that prompts are obeyed better than with a LoRA, and that a subject is copied less closely.

    The result changes single weights of the very base model it was trained on, and is refused by any other. The studio
    reads it directly; `studio export` makes a merged model, full differences, or a LoRA of it.

    **Example:** studio train sara --images paintings/hokusai --class-noun print

    Then: studio generate --adapter outputs/print/adapter.safetensors --prompt "a ohwx print of a harbour"

    Ctrl-C saves everything; the same command goes on where it stopped.
    """
    overrides = {
        "concept.images": images,
        "concept.class_noun": class_noun,
        "concept.token": token,
        "model.base": base,
        "run.output_dir": output,
        "schedule.steps": steps,
        "optimizer.learning_rate": learning_rate,
        "sara.threshold": threshold,
        "sara.density": density,
        "sara.scope": scope,
        "data.batch_size": batch_size,
        "data.resolution": resolution,
        "loss.prior": prior,
        "run.seed": seed,
        "run.device": device,
    }
    run_method("sara", config, overrides, settings, resume, redact, attention)
