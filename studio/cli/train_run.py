"""What every training command does once its flags are settings: read them, train, and say where the result lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import typer

from studio.cli.drawing import use_attention
from studio.cli.settings import assignments

if TYPE_CHECKING:
    from studio.pipelines.adapters import Redaction


def run_method(
    method: str,
    config_file: Path | None,
    overrides: Mapping[str, object],
    settings: Sequence[str] | None,
    resume: bool | None,
    redact: str,
    attention: str | None = None,
) -> None:
    """Train with `method`, and print the adapter's files, the report and the next command.

    Args:
        overrides: the command's flags by their key in the schema; None stands for a flag that was not given.
        attention: see `use_attention`.
        settings: `section.key=value` texts; weaker than the flags, stronger than the file.

    Raises:
        StudioError: as `studio.training.trainer.train`, and for settings that can't be read.
    """
    from studio.training.config import load_config
    from studio.training.progress import progress_for_terminal
    from studio.training.trainer import train

    use_attention(attention)
    given = {key: value for key, value in overrides.items() if value is not None}
    config = load_config(config_file, {**assignments(settings or []), **given, "adapter.method": method})
    result = train(config, resume=resume, progress=progress_for_terminal(), redact=_redaction(redact))
    typer.echo(f"adapter: {result.adapter_path}")
    if result.kohya_path.is_file():
        typer.echo(f"         {result.kohya_path}")
    typer.echo(f"report:  {result.report_path}")
    typer.echo(f'next:    studio generate --adapter {result.adapter_path} --prompt "a {result.trigger} in the snow"')


def _redaction(text: str) -> Redaction:
    from studio.pipelines.adapters import Redaction
    from studio.pipelines.errors import ConfigError

    for level in get_args(Redaction):
        if level == text:
            return cast("Redaction", level)
    raise ConfigError(f"--redact {text}: choose none, private or minimal")
