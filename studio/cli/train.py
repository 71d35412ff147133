"""`studio train`: teach the model a concept from a folder of pictures. One sub-command per training method.

A method's command is one function in its own file, `studio/cli/train_<method>.py`, and one line here.
"""

from __future__ import annotations

import typer

from studio.cli.train_b_lora import b_lora
from studio.cli.train_diffusekrona import diffusekrona
from studio.cli.train_dreambooth_lora import dreambooth_lora
from studio.cli.train_sara import sara

train = typer.Typer(
    name="train",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Teach the model a concept from a folder of pictures.",
)


@train.callback()
def _methods() -> None:
    """Teach the model a concept from a folder of pictures. Choose how with a sub-command."""


train.command("dreambooth-lora")(dreambooth_lora)
train.command("b-lora")(b_lora)
train.command("diffusekrona")(diffusekrona)
train.command("sara")(sara)
