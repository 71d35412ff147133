"""`studio token`: who may use the HTTP API and the page from elsewhere."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.cli.jobs_options import AsJson, Home

if TYPE_CHECKING:
    from studio.api.access import Access, Token

app = typer.Typer(
    name="token", no_args_is_help=True, add_completion=False, help="Tokens for the HTTP API and the page: make, list and revoke."
)


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose, or what for.", show_default=False)],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it is good for: read, draw, train, library, page, admin. Repeat. By default read and draw.",
            show_default=False,
        ),
    ] = None,
    owner: Annotated[
        str | None, typer.Option(help="Whose jobs and things it shows; by default NAME.", show_default=False)
    ] = None,
    days: Annotated[
        float | None, typer.Option(min=0.01, help="How long it is valid; by default until it is revoked.", show_default=False)
    ] = None,
    home: Home = None,
) -> None:
    """Make a token, and print it. It is not kept, only its hash: this is the one time that it can be seen.

    Examples:

      studio token create anna --scope read --scope draw --days 90

      studio token create anna-browser --owner anna --scope page
    """
    with _access(home) as access:
        token, text = access.create(name, scopes=scope or ("read", "draw"), owner=owner, days=days)
        typer.echo(text)
        typer.echo(f"{token.id} for {', '.join(token.scopes)}; keep it secret, it is not shown again.", err=True)


@app.command("list")
def list_tokens(
    revoked: Annotated[bool, typer.Option("--all", help="Those that open nothing any more, too.")] = False,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """List tokens, without their secrets."""
    with _access(home) as access:
        found = [token for token in access.tokens() if revoked or token.is_valid]
    if as_json:
        from dataclasses import asdict

        typer.echo(json.dumps([asdict(token) for token in found], indent=2, ensure_ascii=False))
        return
    for token in found:
        typer.echo(_line(token))


@app.command("revoke")
def revoke(
    token: Annotated[list[str], typer.Argument(help="Ids or names of tokens.", show_default=False)], home: Home = None
) -> None:
    """End tokens, and the logins that began with them, at once."""
    with _access(home) as access:
        for each in token:
            gone = access.revoke(each)
            typer.echo(f"{gone.id} {gone.name} opens nothing any more", err=True)


def _access(home: Path | None) -> Access:
    from studio.api.access import Access
    from studio.storage.home import find_home

    return Access(find_home(home))


def _line(token: Token) -> str:
    state = "revoked" if token.revoked is not None else "valid" if token.is_valid else "expired"
    until = "" if token.expires is None else f" until {_day(token.expires)}"
    used = "never used" if token.used is None else f"used {_day(token.used)}"
    about = f"{','.join(token.scopes):<24} {state}{until}, {used}"
    return f"{token.id}  {token.name:<20} {token.owner:<16} {about}"


def _day(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
