"""`python -m studio.training.referees --which guide|judge`: render, train, freeze."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import torch

from studio.pipelines.base_model import embedded_base_dir
from studio.pipelines.scoring.referee_files import REFEREES, embedded_referees_dir, save_referee
from studio.training.referees.batches import VIEWS_PER_BATCH
from studio.training.referees.recipe import make_recipe
from studio.training.referees.renders import has_matrix_unit, load_round_trip, prepare_renders
from studio.training.referees.trainer import train_referee


def main() -> None:
    """Train one referee and write it into the output folder."""
    parser = argparse.ArgumentParser(prog="python -m studio.training.referees", description=main.__doc__)
    parser.add_argument("--which", choices=REFEREES, required=True)
    parser.add_argument(
        "--vae", type=Path, default=embedded_base_dir() / "vae", help="folder of the autoencoder that the renders go through"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("work-referees"),
        help="folder of renders (1 GB) and checkpoints; resumed when not empty",
    )
    parser.add_argument("--output", type=Path, default=embedded_referees_dir(), help="folder of guide, judge and referees.json")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 where the CPU has AMX")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = make_recipe(arguments.which)
    prepare_renders(recipe.renders, arguments.cache / "renders", load_round_trip(arguments.vae))
    bfloat16 = arguments.precision == "bf16" or (arguments.precision == "auto" and has_matrix_unit())
    run = train_referee(recipe, arguments.cache / "renders", arguments.cache / arguments.which, bfloat16=bfloat16)
    training = {
        "seed": recipe.seed,
        "steps": run.step,
        "pictures_seen": run.step * (recipe.scenes_per_batch + recipe.individuals_per_batch * VIEWS_PER_BATCH),
        "renders": recipe.renders.num_pictures,
        "cpu_seconds": round(run.cpu_seconds),
        "precision": "bf16" if bfloat16 else "fp32",
        "autoencoder_sha256": hashlib.sha256((arguments.vae / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest(),
    }
    digest = save_referee(run.network, arguments.which, arguments.output, training)
    print(f"{arguments.which}: {digest} in {arguments.output}")


if __name__ == "__main__":
    main()
