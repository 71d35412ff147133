"""What every request passes: known host names, no foreign origin, bounded bodies, and headers for the browser."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.api.problems import Problem, problem_response
from studio.api.settings import PREFIX

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
"""For answers that are no page of ours; the pages need a policy of their own."""


class KnownHosts:
    """400 for a request under a name that is not ours, as a page elsewhere would send after rebinding its name to us."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self.app = app
        self.names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through, or refuse it."""
        if scope["type"] in ("http", "websocket") and host_name(Headers(scope=scope).get("host", "")) not in self.names:
            await refusal(scope, 400, "This name is not served here.")(scope, receive, send)
            return
        await self.app(scope, receive, send)


class SameOrigin:
    """403 for a request that changes something, or opens a socket, and comes from a page elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through, or refuse it."""
        changes = scope["type"] == "websocket" or (scope["type"] == "http" and scope["method"] not in SAFE_METHODS)
        if changes and is_foreign(Headers(scope=scope)):
            await refusal(scope, 403, "This request comes from another site.")(scope, receive, send)
            return
        await self.app(scope, receive, send)


class SecurityHeaders:
    """The same headers on every answer, unless it has its own; and none that lets other sites read it.

    Gradio allows every origin where it is asked for under another name than this machine's own.
    """

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self.app = app
        self.headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through, and add to the answer."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
                for name in [name for name in headers.keys() if name.startswith("access-control-")]:  # noqa: SIM118 - no mapping
                    del headers[name]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class BoundedBodies:
    """413 for a body that is larger than its path may have, as it says or as it turns out.

    Args:
        most: bytes by the beginning of the path; the longest beginning counts.
    """

    def __init__(self, app: ASGIApp, most: Mapping[str, int]) -> None:
        self.app = app
        self.most = sorted(most.items(), key=lambda each: -len(each[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it through, or refuse it."""
        most = next((number for beginning, number in self.most if scope.get("path", "").startswith(beginning)), None)
        if scope["type"] != "http" or most is None:
            await self.app(scope, receive, send)
            return
        told = Headers(scope=scope).get("content-length", "0")
        if told.isascii() and told.isdigit() and int(told[:20]) > most:
            await refusal(scope, 413, _too_large(most))(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise Problem(413, _too_large(most))
            return message

        await self.app(scope, counted, send)


def refusal(scope: Scope, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """A problem body for programs, plain text for browsers."""
    if scope["type"] == "http" and scope["path"].startswith(f"{PREFIX}/"):
        return problem_response(status, sentence, instance=scope["path"], headers=headers)
    return PlainTextResponse(sentence, status, dict(headers or {}))


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
    try:
        return urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:
        return True


def _too_large(most: int) -> str:
    return f"The request is larger than {most / 2**20:.4g} MiB, which is the most here."
