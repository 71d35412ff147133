"""`studio doctor`: what is here, what is wrong, and how to mend it."""

from __future__ import annotations

import json

import typer

from studio.cli.jobs_options import AsJson, Home


def doctor(as_json: AsJson = False, home: Home = None) -> None:
    """Tell versions, devices, ways to compute attention and folders; what is wrong, and how to mend it.

    The exit code is 1 if something should be done.
    """
    from studio.service import Studio

    with Studio(home) as studio:
        report = studio.doctor()
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        typer.echo(f"studio {report.studio}, Python {report.python}, {report.system}")
        typer.echo("packages   " + ", ".join(f"{name} {version}" for name, version in report.versions.items() if version))
        for title, table in (("devices", report.devices), ("attention", report.attention), ("folders", report.folders)):
            for number, (name, about) in enumerate(table.items()):
                typer.echo(f"{title if number == 0 else '':<10} {name}: {about}")
        for finding in report.findings:
            typer.echo(f"{'WRONG' if finding.is_wrong else 'ok':<10} {finding.what}")
            if finding.mend:
                typer.echo(f"{'':<10} -> {finding.mend}")
    if not report.is_healthy:
        raise typer.Exit(1)
