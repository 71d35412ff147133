"""How the page is served: where, to whom, and what it may show."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from studio.api.guards import SECURITY_HEADERS
from studio.pipelines.errors import UserError

PAGE_HEADERS: Mapping[str, str] = {
    **SECURITY_HEADERS,
    # Gradio's pages need inline scripts and compile their templates; but nothing may come from, or go to, another place.
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
        "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
    ),
}


@dataclass(frozen=True, kw_only=True)
class UiSettings:
    """How the page is served.

    Attributes:
        host, port: where it listens. names: host names under which it may be asked for, besides this machine's own.
        login: whether everybody needs a token, see `studio token`; without it whoever can reach it is the local person.
        max_upload: largest file that can be sent. worker: whether the page starts a worker when something is handed in.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    names: tuple[str, ...] = ()
    login: bool = False
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
