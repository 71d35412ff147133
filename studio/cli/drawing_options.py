"""The options of the commands that draw pictures, each with its help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studio.cli.drawing import Precision

Base = Annotated[
    str | None,
    typer.Option(
        help="Base model: a diffusers folder, a .safetensors checkpoint (SD 1.x, SDXL) or a hub id. "
        "By default the small model that comes with the studio.",
        show_default=False,
    ),
]
Negative = Annotated[str, typer.Option(help="What to keep away from.", show_default=False)]
NumImages = Annotated[int, typer.Option("--num-images", "-n", min=1, help="Pictures per prompt, with seeds in a row.")]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of the first picture: the same seed draws the same picture. Random by default.", show_default=False),
]
Steps = Annotated[int, typer.Option(help="Denoising steps: more is slower and a little finer.")]
Guidance = Annotated[
    float | None,
    typer.Option(
        help="How closely to follow the prompt; 1 is not at all guided. By default 3 for the embedded model, 7.5 for "
        "SD 1.x and 2, 5 for SDXL.",
        show_default=False,
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WxH|N",
        help="Width and height in pixels, or the side of a square. By default the base model's.",
        show_default=False,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(help="Sampler: ddim, euler, euler_a or dpm++. By default the family's usual one.", show_default=False),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures drawn at once. Smaller needs less memory.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")]
Dtype = Annotated[Precision, typer.Option(help="Type of the weights. auto: float32, and on CUDA bfloat16.")]
Attention = Annotated[
    str | None,
    typer.Option(
        help="What computes the attention: auto, sdpa (torch's own), flex or xformers; what cannot here says so. By default what "
        "STUDIO_ATTENTION names, or auto.",
        show_default=False,
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the model's blocks first: a minute, then quicker on a GPU, also for other adapters."),
]
Graphs = Annotated[bool, typer.Option("--cuda-graphs", help="Record the denoiser's pass once and replay it, on a GPU.")]
Metadata = Annotated[
    bool, typer.Option("--metadata/--no-metadata", help="Write how it was made into each picture and beside it.")
]
