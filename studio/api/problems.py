"""What goes wrong, as problem bodies of RFC 9457: a sentence, and never a trace or a path of this machine."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import JSONResponse, Response

from studio.pipelines.errors import MissingFileError, OutputError, StudioError, UserError

MEDIA_TYPE = "application/problem+json"
_LOG = logging.getLogger("studio.api")

TITLES: Mapping[int, str] = {
    400: "The request cannot be understood",
    401: "Who asks is not known",
    403: "Not allowed",
    404: "There is no such thing",
    405: "This cannot be done here",
    409: "It is not in a state for that",
    413: "Too large",
    415: "Of a kind that is not taken",
    422: "Something about the request is wrong",
    429: "Too much at a time",
    500: "A mistake of the studio's",
    503: "Not now",
    507: "No room",
}

_WITH_FOLDERS = re.compile(r"""(?<![\w.:/\\])(?:[A-Za-z]:(?=[/\\])|~)?(?:[/\\][^\s/\\'"`;,:]+)*[/\\](?=[^\s/\\'"`;,:]+)""")


class Fault(BaseModel):
    """One of several things that are wrong. pointer: where in the request, as a JSON pointer."""

    pointer: str
    detail: str


class ProblemBody(BaseModel):
    """A problem, see RFC 9457. type: a URN that stays the same. errors: for a request with several mistakes."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[Fault] = Field(default_factory=list)


class Problem(HTTPException):
    """A refusal with a sentence of its own."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, None if headers is None else dict(headers))


def problem_response(
    status: int,
    detail: str,
    *,
    instance: str | None = None,
    errors: Sequence[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer that tells of a problem."""
    body = ProblemBody(
        type=f"urn:studio:problem:{status}",
        title=TITLES.get(status, "The request was refused"),
        status=status,
        detail=detail,
        instance=instance,
        errors=list(errors),
    )
    return JSONResponse(body.model_dump(exclude_none=True), status, dict(headers or {}), MEDIA_TYPE)


def without_folders(text: str, home: str = "") -> str:
    """`text` with every path of this machine shortened to its last part.

    Args:
        home: the studio's home; below it, names may have spaces.
    """
    if home:
        text = text.replace(f"{home}/", "/").replace(home, "the studio's folder")
    return _WITH_FOLDERS.sub("", text)


def add_problems(app: FastAPI, home: str) -> None:
    """Let every error of `app` end as a problem body."""

    @app.exception_handler(StarletteHTTPException)
    async def refused(request: Request, error: StarletteHTTPException) -> Response:
        detail = error.detail if isinstance(error, Problem) else TITLES.get(error.status_code, str(error.detail)) + "."
        return problem_response(
            error.status_code, without_folders(detail, home), instance=request.url.path, headers=error.headers
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = [Fault(pointer=_pointer(each["loc"]), detail=_printable(each["msg"])) for each in error.errors()[:50]]
        told = "; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults[:4])
        return problem_response(422, told, instance=request.url.path, errors=faults)

    @app.exception_handler(StudioError)
    async def studio_error(request: Request, error: StudioError) -> Response:
        return problem_response(status_of(error), _printable(without_folders(str(error), home)), instance=request.url.path)

    @app.exception_handler(Exception)
    async def mistake(request: Request, error: Exception) -> Response:
        number = secrets.token_hex(4)
        _LOG.error("mistake %s in %s %s", number, request.method, request.url.path, exc_info=error)
        return problem_response(500, f"It was noted under {number} in the server's log.", instance=request.url.path)


def status_of(error: StudioError) -> int:
    """The status for a sentence of the studio's."""
    if isinstance(error, OutputError):
        return 507
    return 422 if isinstance(error, UserError | MissingFileError) else 503


def _pointer(place: Sequence[Any]) -> str:
    return _printable("".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in place)[:300])


def _printable(text: str) -> str:
    """Without halves of letters, which JSON has and UTF-8 has not."""
    return text.encode("utf-8", "replace").decode()[:2000]
