"""The API as an application of its own, mounted into another one with all guards; see `docs/api.md`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount

from studio import __version__
from studio.api.access import Access
from studio.api.callers import KnownCallers
from studio.api.desk import Counter, ReadDesk
from studio.api.guards import SECURITY_HEADERS, BoundedBodies, KnownHosts, SameOrigin, SecurityHeaders
from studio.api.login import login_router
from studio.api.problems import MEDIA_TYPE, TITLES, ProblemBody, add_problems
from studio.api.routes import batches, drawing, events, jobs, library, uploads
from studio.api.routes.health import Figures, Measured, health_router
from studio.api.settings import LOOPBACK, MIB, PREFIX, ApiSettings
from studio.api.throttle import Throttle
from studio.service import Studio

_ABOUT = "Trainings, pictures and compositions as jobs; a library of adapters, photos, plans and pictures. Ids, never paths."
_TOLD = (400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 503, 507)


def create_app(studio: Studio, settings: ApiSettings | None = None) -> FastAPI:
    """The API alone, without the page."""
    app = FastAPI(title="Diffusion Customization Studio", docs_url=None, redoc_url=None, openapi_url=None)
    add_api(app, studio, ApiSettings() if settings is None else settings)
    return app


def add_api(app: FastAPI, studio: Studio, settings: ApiSettings, *, headers: Mapping[str, str] = SECURITY_HEADERS) -> Access:
    """Add the API, health, figures and login to `app`, and put the guards around all of it.

    Args:
        headers: for every answer that has none of its own; a page needs another Content-Security-Policy than data.

    Returns:
        The tokens, which `app` closes never: they belong to the process, as the studio does.
    """
    uploads.remove_leftovers(studio.home)
    access, figures = Access(studio.home), Figures(studio)
    throttle = Throttle(settings.limits, access.database)
    app.mount(PREFIX, make_api(Counter(studio, settings, access, throttle), figures))
    app.include_router(health_router(studio, figures))
    app.include_router(login_router(access, throttle, login=settings.login))
    # The last one added is the first to see a request.
    limits = settings.limits
    most = {
        f"{PREFIX}/upload/": limits.upload_bytes,
        f"{PREFIX}/": limits.body_bytes,
        "/login": MIB // 16,
        "/": limits.upload_bytes,
    }
    app.add_middleware(BoundedBodies, most=most)
    app.add_middleware(KnownCallers, access=access, throttle=throttle, login=settings.login)
    app.add_middleware(SameOrigin)
    app.add_middleware(KnownHosts, names=(*LOOPBACK, *settings.names))
    app.add_middleware(SecurityHeaders, headers=headers)
    return access


def make_api(counter: Counter, figures: Figures) -> FastAPI:
    """The application under /api/v1."""
    told: dict[int | str, dict[str, Any]] = {status: {"model": ProblemBody, "description": TITLES[status]} for status in _TOLD}
    api = FastAPI(
        title="Diffusion Customization Studio",
        version=__version__,
        description=_ABOUT,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        responses=told,
        generate_unique_id_function=lambda route: route.name,
        strict_content_type=True,
        redirect_slashes=False,
    )
    api.state.counter = counter
    add_problems(api, str(counter.studio.home.root))
    api.add_middleware(Measured, figures=figures)
    api.add_middleware(SecurityHeaders, headers=SECURITY_HEADERS)  # stricter than those of a page around it
    for each in (drawing, batches, jobs, events, library, uploads):
        api.include_router(each.router)
    api.include_router(_description(api))
    return api


def api_of(app: FastAPI) -> FastAPI:
    """The application under /api/v1 of one that `add_api` was called with."""
    found = next(route.app for route in app.routes if isinstance(route, Mount) and route.path == PREFIX)
    assert isinstance(found, FastAPI)
    return found


def _description(api: FastAPI) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/openapi.json")
    def description(desk: ReadDesk) -> Response:
        return JSONResponse(openapi(api))

    return router


def openapi(api: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, whose problems are of their own media type."""
    found = api.openapi()
    found["servers"] = [{"url": PREFIX}]
    for path in found["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                content = answer.get("content", {})
                if status >= "400":
                    answer["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
                elif any(kind != "application/json" for kind in content):
                    content.pop("application/json", None)
                    for media in content.values():
                        media.setdefault("schema", {"type": "string", "format": "binary"})
    return found
