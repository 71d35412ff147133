"""The web application: our own routes first, then the pages, with nothing of gradio's that phones home or logs people in."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import gradio as gr
from fastapi import Depends, FastAPI, HTTPException, Request

from studio.pipelines.errors import UserError
from studio.service import Studio
from studio.ui.app import build_pages
from studio.ui.guards import add_guards
from studio.ui.look import STYLE, head, theme
from studio.ui.media import media_router
from studio.ui.settings import LOOPBACK, UiSettings, the_local_person
from studio.ui.strings import translations

HANDLERS = 8
"""How many handlers of one kind run at the same time: they only write rows and read the disk."""

_UPLOADS = "GRADIO_TEMP_DIR"


def create_app(studio: Studio, settings: UiSettings | None = None) -> FastAPI:
    """The application for one studio; an HTTP API is added before the pages, see `studio.api`.

    Raises:
        UserError: it would listen to other machines without knowing who asks.
    """
    settings = UiSettings() if settings is None else settings
    refuse_strangers(settings)
    os.environ.setdefault(_UPLOADS, tempfile.mkdtemp(prefix="studio-uploads-"))
    app = FastAPI(title="Diffusion Customization Studio", docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan)
    app.state.studio, app.state.settings = studio, settings
    add_guards(app, settings)
    app.include_router(media_router(studio), dependencies=[Depends(_known_person(settings))])

    @app.get("/healthz", include_in_schema=False)
    def health() -> dict[str, str]:
        return {"status": "ok"}

    pages = build_pages(studio, settings)
    pages.queue(default_concurrency_limit=HANDLERS, max_size=256)
    return gr.mount_gradio_app(
        app,
        pages,
        path="/",
        server_name=settings.host,
        server_port=settings.port,
        auth_dependency=settings.person,
        show_error=False,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        allowed_paths=[],
        blocked_paths=[str(studio.home.jobs_database), str(studio.home.library_database)],
        max_file_size=settings.max_upload,
        footer_links=[],
        i18n=translations(),
        theme=theme(),
        css=STYLE,
        head=head(),
        favicon_path=str(Path(__file__).with_name("look") / "icon.svg"),
        app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None},
    )


def refuse_strangers(settings: UiSettings) -> None:
    """`UserError` for an address that others can reach while everybody is taken for the local person."""
    if settings.host not in LOOPBACK and settings.person is the_local_person:
        raise UserError(
            f"The page would be open to everybody who reaches {settings.host}. Leave --host at 127.0.0.1, or set up a login."
        )


def _known_person(settings: UiSettings):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a FastAPI dependency
    async def check(request: Request) -> str:
        found = settings.person(request)
        person = found if isinstance(found, str) or found is None else await found
        if person is None:
            raise HTTPException(401)
        return person

    return check


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
