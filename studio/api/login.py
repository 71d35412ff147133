"""The login of the page: a token is exchanged for a cookie that scripts cannot read and other sites cannot send."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from studio.api.access import SESSION_SECONDS, Access, token_id_of
from studio.api.callers import COOKIE, address_of
from studio.api.guards import SECURITY_HEADERS
from studio.api.throttle import Throttle

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Log in</title>
<style>body{{font:1rem system-ui;max-width:24rem;margin:15vh auto;padding:0 1rem}}
input,button{{font:inherit;width:100%;box-sizing:border-box;padding:.6rem;margin:.3rem 0}}p{{color:#a00}}</style></head>
<body><h1>Diffusion Customization Studio</h1><p role="alert">{said}</p>
<form method="post" action="/login"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Log in</button></form>
<small>Whoever runs this studio makes one with: studio token create NAME --scope page</small></body></html>
"""


def login_router(access: Access, throttle: Throttle, *, login: bool) -> APIRouter:
    """Routes /login and /logout."""
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    def form() -> Response:
        return _page() if login else RedirectResponse("/", 303)

    @router.post("/login")
    def log_in(request: Request, token: Annotated[str, Form(max_length=200)] = "") -> Response:
        address, token_id = address_of(request.scope), token_id_of(token)
        wait = throttle.login_wait_seconds(address, token_id)
        if wait:
            return _page(f"There were too many wrong tokens; wait {wait} seconds.", 429, {"Retry-After": str(wait)})
        session = access.log_in(token.strip())
        if session is None:
            throttle.login_failed(address, token_id)
            return _page("This token opens nothing; it is wrong, too old or was revoked.", 401)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, session, int(SESSION_SECONDS), httponly=True, samesite="strict", secure=secure)
        return answer

    @router.post("/logout")
    def log_out(request: Request) -> Response:
        session = request.cookies.get(COOKIE)
        if session:
            access.log_out(session)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE)
        return answer

    return router


def _page(said: str = "", status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return HTMLResponse(_PAGE.format(said=said), status, {**SECURITY_HEADERS, "Cache-Control": "no-store", **(headers or {})})
