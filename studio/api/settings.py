"""How the API is served: whether it asks who is there, and how much anybody may take."""

from __future__ import annotations

from dataclasses import dataclass, field

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIB = 2**20
PREFIX = "/api/v1"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one person (one owner of tokens) may take; rates in the notation of the library `limits`.

    Attributes:
        reads, writes: requests. failed_logins: wrong tokens with one id from one address; failed_logins_in_all: from one
            address.
        waiting_jobs: jobs that have not ended, at a time. pictures: of one job. upload_bytes_per_day: of files sent.
        streams: event streams open at a time. body_bytes: of a request that is no upload. upload_bytes: of one upload.
        photos: files of one concept. pixels: width × height of one picture.
    """

    reads: str = "1200/minute"
    writes: str = "240/minute"
    failed_logins: str = "10/minute"
    failed_logins_in_all: str = "60/minute"
    waiting_jobs: int = 1000
    pictures: int = 1000
    upload_bytes_per_day: int = 16 * 2**30
    streams: int = 16
    body_bytes: int = MIB
    upload_bytes: int = 1024 * MIB
    photos: int = 200
    pixels: int = 64_000_000


@dataclass(frozen=True, kw_only=True)
class ApiSettings:
    """How the API is served.

    Attributes:
        login: whether everybody needs a token or a login; without it whoever can reach the address is the local person.
        names: host names under which it may be asked for, besides this machine's own.
        worker: whether a worker is started when something is handed in. limits: see `Limits`.
    """

    login: bool = False
    names: tuple[str, ...] = ()
    worker: bool = False
    limits: Limits = field(default_factory=Limits)


def needs_login(host: str) -> bool:
    """Whether somebody on another machine can reach what listens at `host`."""
    return host not in LOOPBACK
