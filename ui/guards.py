"""What every request passes: known host names, no foreign origin, and headers that keep the browser inside this machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.ui.settings import LOOPBACK, UiSettings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

SECURITY_HEADERS: Mapping[str, str] = {
    # Gradio's pages need inline scripts and compile their templates; but nothing may come from, or go to, another place.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
        "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def add_guards(app: FastAPI, settings: UiSettings) -> None:
    """Put the guards around `app`; the host's name is looked at first."""
    app.add_middleware(SecurityHeaders, headers=SECURITY_HEADERS)
    app.add_middleware(SameOrigin)
    app.add_middleware(KnownHosts, names=(*LOOPBACK, *settings.names, settings.host))


class KnownHosts:
    """400 for a request under a name that is not ours, as a page elsewhere would send after rebinding its name to us."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self.app = app
        self.names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and host_name(Headers(scope=scope).get("host", "")) not in self.names:
            await PlainTextResponse("This name is not served here.", 400)(scope, receive, send)
            return
        await self.app(scope, receive, send)


class SameOrigin:
    """403 for a request that changes something and comes from a page elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS and is_foreign(Headers(scope=scope)):
            await PlainTextResponse("This request comes from another site.", 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)


class SecurityHeaders:
    """The same headers on every answer, unless it has its own."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self.app = app
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def is_foreign(headers: Headers) -> bool:
    """Whether the request says that it comes from a page of another origin than the one it goes to."""
    origin = headers.get("origin")
    if origin is None:  # no browser, or a plain link
        return headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
    return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
