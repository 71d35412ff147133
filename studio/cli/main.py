"""The `studio` command: what verbs there are, and how errors end.

Nothing heavy is imported here: a verb's module is imported when the verb is called (or asked for its own `--help`).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

from studio import __version__
from studio.pipelines.errors import StudioError

EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells count it: 128 + SIGINT."""


class Verb(NamedTuple):
    """One sub-command: where it lives and its line in `studio --help`.

    `function` names either an annotated function, or a `typer.Typer` that holds further sub-commands.
    """

    name: str
    module: str
    function: str
    help: str


VERBS: tuple[Verb, ...] = (
    Verb("train", "studio.cli.train", "train", "Teach the model a concept from a folder of pictures."),
    Verb("generate", "studio.cli.generate", "generate", "Make pictures from prompts, with or without adapters."),
    Verb("stylize", "studio.cli.stylize", "stylize", "Draw the content of one picture in the style of another."),
    Verb("compose", "studio.cli.compose", "compose", "Draw one picture with several adapters, each for its words or place."),
    Verb("compare", "studio.cli.compare", "compare", "Draw a plan by every strategy, side by side, with scores."),
    Verb("batch", "studio.cli.batch", "batch", "Draw, compose and train what a file says; go on where it stopped."),
    Verb("show", "studio.cli.show", "show", "Tell how a picture was made, by whatever tool."),
    Verb("redo", "studio.cli.redo", "redo", "Draw a picture again from what it says of itself."),
    Verb("selma", "studio.cli.selma", "selma", "Teach a base model skills with its own pictures, and merge what it learned."),
    Verb("calibrate", "studio.cli.calibrate", "calibrate", "Measure how strongly adapters act, for comparable strengths."),
    Verb("inspect", "studio.cli.inspect", "inspect", "Tell what an adapter file is."),
    Verb("export", "studio.cli.export", "export", "Write an adapter in another format, or merged into a base model."),
    Verb("probe-blocks", "studio.cli.probe_blocks", "probe_blocks", "Find the blocks of a base that hold content and style."),
    Verb("eval", "studio.cli.eval", "app", "Measure the base model or a training method, and print the table."),
    Verb("jobs", "studio.cli.jobs", "app", "Hand in, list, watch, cancel, pause and retry jobs."),
    Verb("worker", "studio.cli.worker", "worker", "Work on the jobs that were handed in."),
    Verb("library", "studio.cli.library", "app", "Adapters, concepts, base models, plans and pictures: bring in and find."),
    Verb("doctor", "studio.cli.doctor", "doctor", "Tell what is here, what is wrong, and how to mend it."),
    Verb("bench", "studio.cli.bench", "app", "Time the kernels, the adapters in a model, and a training step."),
    Verb("base-model", "studio.cli.base_model", "base_model", "Rebuild the embedded base model from its recipe."),
    Verb("token", "studio.cli.token", "app", "Make, list and revoke tokens for the HTTP API and the page."),
    Verb("ui", "studio.cli.ui", "ui", "Open the page in the browser."),
    Verb("demo", "studio.cli.demo", "demo", "Teach a sample concept and show it in new pictures."),
)


class LazyCommand(TyperCommand):
    """A verb that is known by name and help line, and imported on its first use."""

    def __init__(self, verb: Verb) -> None:
        super().__init__(name=verb.name, help=verb.help)
        self.verb = verb

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the verb and hand over to its real command."""
        return load_verb(self.verb).make_context(info_name, args, parent=parent, **extra)


class StudioGroup(TyperGroup):
    """The top command: turns the errors that a person can cause into one sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb.

        Raises:
            typer.Exit: with the error's own code, after its sentence was printed on standard error.
        """
        try:
            return super().invoke(ctx)
        except StudioError as error:
            typer.echo(f"studio: {error}", err=True)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            typer.echo("studio: interrupted", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from error


def load_verb(verb: Verb) -> Any:
    """Import the verb's module and make its command."""
    target = getattr(importlib.import_module(verb.module), verb.function)
    if isinstance(target, typer.Typer):
        command = get_command(target)
        command.name = verb.name
        return command
    app = typer.Typer(add_completion=False)
    app.command(verb.name)(target)
    return get_command(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"studio {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Diffusion Customization Studio: teach a text-to-image model new concepts and compose them."""


def make_command(verbs: Sequence[Verb] = VERBS) -> TyperGroup:
    """Build the top command from the list of verbs."""
    app = typer.Typer(name="studio", cls=StudioGroup, no_args_is_help=True, add_completion=False)
    app.callback()(_root)
    group = get_group(app)
    for verb in verbs:
        group.add_command(LazyCommand(verb))
    return group


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `studio` script and of `python -m studio`; ends with `SystemExit`."""
    make_command()(args=None if arguments is None else list(arguments), prog_name="studio")
