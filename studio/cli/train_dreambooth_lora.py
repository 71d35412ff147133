"""`studio train dreambooth-lora`."""

from __future__ import annotations

from studio.cli import train_options as options
from studio.cli.train_run import run_method


def dreambooth_lora(
    images: options.Images = None,
    class_noun: options.ClassNoun = None,
    token: options.Token = None,
    base: options.Base = None,
    output: options.Output = None,
    steps: options.Steps = None,
    learning_rate: options.LearningRate = None,
    rank: options.Rank = None,
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
    """Learn one particular thing (your dog, your mug) from a few photos.

    The result is a small adapter file that works with the base model it was trained on, and a report with samples,
    curves and the reason why that checkpoint was chosen.

    **Example:** studio train dreambooth-lora --images photos/rex --class-noun dog

    Then: studio generate --adapter outputs/dog/adapter.safetensors --prompt "a ohwx dog in the snow"

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
        "adapter.rank": rank,
        "data.batch_size": batch_size,
        "data.resolution": resolution,
        "loss.prior": prior,
        "run.seed": seed,
        "run.device": device,
    }
    run_method("dreambooth-lora", config, overrides, settings, resume, redact, attention)
