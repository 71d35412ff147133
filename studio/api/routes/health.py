"""Whether it lives, whether it is ready, and figures for Prometheus."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.api.callers import caller_of
from studio.api.guards import refusal
from studio.jobs.workers import all_workers
from studio.pipelines.errors import StudioError
from studio.pipelines.files import output_errors
from studio.service import ItemFilter, Kind, Studio


class Figures:
    """What /metrics tells: requests that this process has answered, and the state of the home."""

    def __init__(self, studio: Studio) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("studio_http_requests", "Requests.", ["method", "route", "status"], registry=self.registry)
        self.seconds = Histogram("studio_http_seconds", "Time to the end of an answer.", ["route"], registry=self.registry)
        self.studio = studio
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Jobs, workers and things, counted now."""
        jobs = GaugeMetricFamily("studio_jobs", "Jobs by state.", labels=["state"])
        for state, number in self.studio.store.counts().items():
            jobs.add_metric([state], number)
        yield jobs
        waiting = self.studio.queue()
        oldest = max((time.time() - job.created for job in waiting), default=0.0)
        yield GaugeMetricFamily("studio_queue_oldest_seconds", "How long the oldest waiting job has waited.", value=oldest)
        alive = sum(worker.is_alive for worker in all_workers(self.studio.store))
        yield GaugeMetricFamily("studio_workers", "Workers that are alive.", value=alive)
        items = GaugeMetricFamily("studio_library_items", "Things in the library by kind.", labels=["kind"])
        for kind in Kind:
            items.add_metric([kind.value], self.studio.library.catalogue.count(ItemFilter(kind=kind.value)))
        yield items


class Measured:
    """Counts the requests of the API, by route and not by address."""

    def __init__(self, app: ASGIApp, figures: Figures) -> None:
        self.app, self.figures = app, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through, and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.figures.requests.labels(method, route, str(status)).inc()
            self.figures.seconds.labels(route).observe(time.perf_counter() - begun)


def health_router(studio: Studio, figures: Figures) -> APIRouter:
    """Routes /healthz and /readyz for everybody, /metrics for the scope admin."""
    router = APIRouter(include_in_schema=False)

    @router.get("/healthz")
    def alive() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz")
    def ready() -> Response:
        wrong = _wrong(studio)
        return JSONResponse({"status": "not ready" if wrong else "ok", "wrong": wrong}, 503 if wrong else 200)

    @router.get("/metrics")
    def metrics(request: Request) -> Response:
        caller = caller_of(request)
        if caller is None or not caller.may("admin"):
            return refusal(request.scope, 403, "The figures need a token with the scope admin.")
        return Response(generate_latest(figures.registry), media_type=CONTENT_TYPE_LATEST)

    return router


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _wrong(studio: Studio) -> list[str]:
    """What keeps the studio from working, by short names: paths and versions are nobody's business here."""
    wrong = []
    try:
        studio.store.counts()
    except StudioError:
        wrong.append("jobs database")
    try:
        studio.library.catalogue.count()
    except StudioError:
        wrong.append("library database")
    probe = studio.home.root / f".ready-{secrets.token_hex(6)}"
    try:
        with output_errors(probe):
            probe.write_bytes(b"")
            probe.unlink()
    except StudioError:
        wrong.append("home cannot be written to")
    return wrong
