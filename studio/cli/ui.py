"""`studio ui`: the page in the browser."""

from __future__ import annotations

import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from studio.pipelines.errors import MissingDependencyError


def ui(
    home: Annotated[Path | None, typer.Option(help="The studio's folder; by default STUDIO_HOME.", show_default=False)] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's need a login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65_535)] = 7860,
    name: Annotated[
        list[str] | None, typer.Option(help="A host name under which it may be asked for.", show_default=False)
    ] = None,
    worker: Annotated[
        bool, typer.Option("--worker/--no-worker", help="Start a worker when something is to be done and none is at work.")
    ] = True,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open it in the browser.")] = True,
) -> None:
    """Open the page: train, create, compose, and see all of it. The HTTP API is beside it, under /api/v1.

    On another address than this machine's own, everybody needs a token: studio token create.
    """
    try:
        import uvicorn

        from studio.ui.server import create_app
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "uvicorn", "fastapi"):
            raise
        raise MissingDependencyError('The page needs gradio: pip install -c constraints.txt -e ".[ui]"') from error
    from studio.api.settings import needs_login
    from studio.service import Studio
    from studio.ui.settings import UiSettings, listening_socket

    listener = listening_socket(host, port)
    address = f"http://{'127.0.0.1' if host == '::1' else host}:{listener.getsockname()[1]}"
    settings = UiSettings(
        host=host, port=listener.getsockname()[1], names=tuple(name or ()), login=needs_login(host), worker=worker
    )
    app = create_app(Studio(home), settings)
    typer.echo(f"The page is at {address} (Ctrl-C ends it; jobs go on).", err=True)
    if open_browser:
        threading.Timer(1.0, webbrowser.open, (address,)).start()
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)).run(sockets=[listener])
