"""`studio base-model`: train the embedded base from nothing, stage by stage."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Stage(StrEnum):
    """Stages of the recipe, in order."""

    renders = "renders"
    autoencoder = "autoencoder"
    denoiser = "denoiser"
    export = "export"
    all = "all"


def base_model(
    stage: Annotated[
        Stage, typer.Argument(help="Stage to run; 'all' runs them in order. Each resumes what its folder holds.")
    ] = Stage.all,
    state: Annotated[Path, typer.Option(help="Folder of the resumable state (4 GB with 100k renders).")] = Path("work-base"),
    output: Annotated[Path, typer.Option(help="Diffusers folder that 'export' writes.")] = Path("assets/base"),
    pictures: Annotated[int, typer.Option(help="Pictures the denoiser has seen when it stops.")] = 500_000,
    anneal: Annotated[int, typer.Option(help="The last this many pictures let the learning rate fall to zero.")] = 100_000,
    peak: Annotated[float, typer.Option(help="Share of the recipe's learning rate; less for a last phase.")] = 1.0,
    shards: Annotated[int, typer.Option(help="Rendered shards of 2,048 pictures.")] = 56,
    decoder_seconds: Annotated[float, typer.Option(help="CPU seconds for the autoencoder's decoder.")] = 900.0,
    workers: Annotated[int, typer.Option(help="Processes that render and that train the denoiser.")] = 2,
    compiled: Annotated[
        bool, typer.Option("--compile", help="torch.compile the UNet (needs a C++ compiler; about 1.2x).")
    ] = False,
    from_weights: Annotated[
        Path | None,
        typer.Option("--continue", help="Start from an exported fp16 folder when the state is gone; the optimizer re-warms."),
    ] = None,
) -> None:
    """Train the embedded base model of the toy world.

    The denoiser saves every few minutes and on Ctrl-C; run the same command again to go on. To finish a run early, pass
    --pictures a little above what it has seen and --anneal that difference.
    """
    import torch

    from studio.training.base_model import autoencoder, denoiser, export, renders
    from studio.training.base_model.recipe import BaseRecipe

    torch.set_num_threads(workers)
    state.mkdir(parents=True, exist_ok=True)
    saved = state / "recipe.json"
    recipe = BaseRecipe()
    for made_with in (saved, *([from_weights / "recipe.json"] if from_weights else [])):
        recipe = BaseRecipe.load(made_with) if made_with.exists() else recipe
    recipe.save(saved)
    if stage in (Stage.renders, Stage.all):
        renders.render_shards(state / "renders", num_shards=shards, seed=recipe.seed, size=recipe.size, workers=workers)
    rewarm_from = 0
    if from_weights is not None:
        # The same command goes on where it stopped: exported weights never replace a newer state.
        if (state / "denoiser" / "state.safetensors").exists():
            typer.echo(f"{state} holds a state already; going on with it instead of {from_weights}", err=True)
        else:
            rewarm_from = denoiser.start_from_weights(state, recipe, from_weights)
    if stage is Stage.autoencoder or (stage is Stage.all and from_weights is None):
        autoencoder.train_decoder(state, recipe, cpu_seconds=decoder_seconds)
    if stage in (Stage.denoiser, Stage.all):
        processes = max(count for count in range(1, workers + 1) if recipe.batch_size % count == 0)
        torch.set_num_threads(1)
        plan = denoiser.RunPlan(
            pictures=pictures, anneal=anneal, compile=compiled, rewarm_from=rewarm_from, peak=peak, processes=processes
        )
        denoiser.train_denoiser(state, recipe, plan)
    if stage in (Stage.export, Stage.all):
        export.export(state, recipe, output)
        typer.echo(str(output))
