"""How the page is served: where, to whom, and what it may show."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request

from studio.pipelines.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOCAL_PERSON = "local"


def the_local_person(request: Request) -> str | None:
    """Who asks, on a machine of one person: always the same one."""
    return LOCAL_PERSON


@dataclass(frozen=True, kw_only=True)
class UiSettings:
    """How the page is served.

    Attributes:
        host, port: where it listens. names: host names under which it may be asked for, besides this machine's own.
        person: who a request comes from; None for nobody, who then sees nothing.
        max_upload: largest file that can be sent. threads: handlers that run at the same time.
        worker: whether the page starts a worker when something is handed in.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    names: tuple[str, ...] = ()
    person: Callable[[Request], str | None | Awaitable[str | None]] = the_local_person
    max_upload: str = "256mb"
    worker: bool = True


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError when the port is taken or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UserError(f"{host}:{port} cannot be used ({os.strerror(error.errno or 0)}); choose another --port.") from error
    return listener
