"""Who comes with a request: looked up once, before anything else sees it."""

from __future__ import annotations

from anyio import to_thread
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from studio.api.access import LOCAL, Access, Caller, token_id_of
from studio.api.guards import refusal
from studio.api.settings import PREFIX
from studio.api.throttle import Throttle

CALLER = "studio.caller"
COOKIE = "studio_session"
PUBLIC = frozenset({"/healthz", "/readyz", "/login"})
"""What is answered to anybody."""

_API = f"{PREFIX}/"
_OF_PROGRAMS = (_API, "/metrics", "/logout")


class KnownCallers:
    """401 for whoever is not known, and for the page 403 without the scope "page"; a wrong token is always refused.

    Everything behind it is closed unless it is in `PUBLIC`: a route that somebody adds later is, too.
    """

    def __init__(self, app: ASGIApp, access: Access, throttle: Throttle, *, login: bool) -> None:
        self.app, self.access, self.throttle, self.login = app, access, throttle, login

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find out who asks, and let them through or not."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        found = await self._caller(scope)
        answer = found if isinstance(found, Response) else self._refusal(scope, found)
        if answer is not None:
            await answer(scope, receive, send)
            return
        scope[CALLER] = found
        await self.app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Caller | Response | None:
        headers = Headers(scope=scope)
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return await to_thread.run_sync(self._of_token, scope, token.strip())
        session = cookie_parser(headers.get("cookie", "")).get(COOKIE)
        if session:
            known = await to_thread.run_sync(self.access.caller_of_session, session)
            if known is not None:
                return known
        return None if self.login else LOCAL

    def _of_token(self, scope: Scope, token: str) -> Caller | Response:
        address, token_id = address_of(scope), token_id_of(token)
        wait = self.throttle.login_wait_seconds(address, token_id)
        if wait:
            return refusal(scope, 429, f"There were too many wrong tokens; wait {wait} seconds.", {"Retry-After": str(wait)})
        known = self.access.caller_of_token(token)
        if known is None:
            self.throttle.login_failed(address, token_id)
            return refusal(scope, 401, "This token opens nothing; it is wrong, too old or was revoked.", _BEARER)
        return known

    def _refusal(self, scope: Scope, caller: Caller | None) -> Response | None:
        path = scope["path"]
        if path in PUBLIC:
            return None
        if caller is None:
            wants_page = scope["type"] == "http" and scope["method"] == "GET" and not path.startswith(_OF_PROGRAMS)
            if wants_page and "text/html" in Headers(scope=scope).get("accept", ""):
                return RedirectResponse("/login", 303)
            return refusal(scope, 401, "Give a token: Authorization: Bearer st_…; `studio token create` makes one.", _BEARER)
        if not path.startswith(_OF_PROGRAMS) and not caller.may("page"):
            return refusal(scope, 403, "This token has not the scope page, which the page in the browser needs.")
        return None


_BEARER = {"WWW-Authenticate": 'Bearer realm="studio"'}


def caller_of(request: Request) -> Caller | None:
    """Who comes with a request; None for nobody."""
    return request.scope.get(CALLER)


def person_of(request: Request) -> str | None:
    """The name of who comes with a request, for the page; None for nobody."""
    caller = caller_of(request)
    return None if caller is None else caller.owner or "local"


def address_of(scope: Scope) -> str:
    """The machine that a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else ""
