"""The web application: the HTTP API and its guards, our own routes, then the pages, with nothing of gradio's that phones home."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import gradio as gr
from fastapi import FastAPI, Request

from studio.api.app import add_api
from studio.api.callers import CALLER
from studio.api.settings import ApiSettings, needs_login
from studio.pipelines.errors import UserError
from studio.service import Studio
from studio.ui.app import build_pages
from studio.ui.look import STYLE, head, theme
from studio.ui.media import media_router
from studio.ui.settings import PAGE_HEADERS, UiSettings
from studio.ui.strings import translations

HANDLERS = 8
"""How many handlers of one kind run at the same time: they only write rows and read the disk."""

_UPLOADS = "GRADIO_TEMP_DIR"


def create_app(studio: Studio, settings: UiSettings | None = None) -> FastAPI:
    """The application for one studio.

    Raises:
        UserError: other machines could reach it without a login.
    """
    settings = UiSettings() if settings is None else settings
    if needs_login(settings.host) and not settings.login:
        raise UserError(f"The page would be open to everybody who reaches {settings.host}; it needs a login there.")
    os.environ.setdefault(_UPLOADS, tempfile.mkdtemp(prefix="studio-uploads-"))
    app = FastAPI(title="Diffusion Customization Studio", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    app.state.studio, app.state.settings = studio, settings
    add_api(
        app,
        studio,
        ApiSettings(login=settings.login, names=(*settings.names, settings.host), worker=settings.worker),
        headers=PAGE_HEADERS,
    )
    app.include_router(media_router(studio))
    pages = build_pages(studio, settings)
    pages.queue(default_concurrency_limit=HANDLERS, max_size=256)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SSR mode is not supported", category=UserWarning)  # nobody asked for it
        return _mounted(app, pages, studio, settings)


def _mounted(app: FastAPI, pages: gr.Blocks, studio: Studio, settings: UiSettings) -> FastAPI:
    return gr.mount_gradio_app(
        app,
        pages,
        path="/",
        server_name=settings.host,
        server_port=settings.port,
        auth_dependency=who_asks,
        show_error=False,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        allowed_paths=[str(studio.home.root / "exports")],
        blocked_paths=[str(studio.home.root / name) for name in ("jobs.sqlite3", "library.sqlite3", "access.sqlite3")],
        max_file_size=settings.max_upload,
        footer_links=[],
        i18n=translations(),
        theme=theme(),
        css=STYLE,
        head=head(),
        favicon_path=str(Path(__file__).with_name("look") / "icon.svg"),
        app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None},
    )


def who_asks(request: Request) -> str | None:
    """Who a request comes from, as the guards found out; None for nobody, who then sees nothing."""
    caller = request.scope.get(CALLER)
    return None if caller is None else str(caller.owner) or "local"


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Read what takes long to import before somebody waits for it."""
    threading.Thread(target=_warm_up, args=(app.state.studio, app.state.settings), daemon=True).start()
    yield


def _warm_up(studio: Studio, settings: UiSettings) -> None:
    """Go on with what was left undone, and read early what takes long to import; whoever needs it hears of what is wrong."""
    with contextlib.suppress(Exception):
        if settings.worker and (studio.queue() or studio.store.running()):
            studio.ensure_worker()
        studio.strategies()
