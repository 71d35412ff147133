"""What a route works with: the studio as the caller may see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import HTTPException, Request, Security
from fastapi.security import HTTPBearer, SecurityScopes

from studio.api.access import LOCAL, Access, Caller
from studio.api.callers import caller_of
from studio.api.guards import SAFE_METHODS
from studio.api.problems import Problem, without_folders
from studio.api.settings import ApiSettings
from studio.api.throttle import Throttle
from studio.jobs.ids import is_id
from studio.pipelines.errors import MissingFileError
from studio.service import Item, Job, Studio

NOT_ENDED = ("queued", "running", "canceling", "interrupted")

bearer = HTTPBearer(auto_error=False, scheme_name="token", description="`studio token create`; not needed on this machine.")


@dataclass(frozen=True)
class Counter:
    """What all routes share. A desk is one caller's place at it."""

    studio: Studio
    settings: ApiSettings
    access: Access
    throttle: Throttle


@dataclass(frozen=True)
class Desk:
    """The studio as one caller may see and change it: what is not theirs is not there."""

    counter: Counter
    studio: Studio
    caller: Caller

    @property
    def owner(self) -> str | None:
        """Whose jobs lists show; None for everybody's."""
        return None if self.caller.sees_all else self.caller.owner

    @property
    def owners(self) -> tuple[str, ...] | None:
        """Whose things lists show: one's own, and those of the machine's own person; None for everybody's."""
        return None if self.caller.sees_all else tuple(dict.fromkeys((self.caller.owner, "")))

    def job(self, job_id: str) -> Job:
        """One of the caller's jobs. Raises Problem 404."""
        try:
            job = self.studio.job(job_id) if is_id(job_id) else None
        except MissingFileError:
            job = None
        if job is None or self.owner not in (None, job.owner):
            raise Problem(404, f"There is no job {job_id[:40]}.")
        return job

    def item(self, item_id: str, kind: str | None = None, *, change: bool = False) -> Item:
        """A thing that the caller may see, or change. Raises Problem 404, or 403 where it is for reading only."""
        item = self.studio.library.catalogue.find(item_id)
        if item is None or kind not in (None, item.kind) or (self.owners is not None and item.owner not in self.owners):
            raise Problem(404, f"There is no {kind or 'thing'} {item_id[:40]} in the library.")
        if change and not self.caller.sees_all and item.owner != self.caller.owner:
            raise Problem(403, f"{item.name!r} belongs to the studio itself; it can be used and not changed.")
        return item

    def used(self, item_id: str, kind: str, what: str) -> Item:
        """A thing that a request names. Raises Problem 422 where there is none for the caller."""
        item = self.studio.library.catalogue.find(item_id)
        seen = item is not None and (self.owners is None or item.owner in self.owners)
        if item is None or not seen or item.kind != kind or item.trashed is not None:
            raise Problem(422, f"{what}: there is no {kind} {item_id[:40]} in the library.")
        return item

    def told(self, text: str) -> str:
        """A sentence without paths of this machine."""
        return without_folders(text, str(self.studio.home.root))

    def name_of(self, path: Path) -> str:
        """What a file is called outside: its id in the library, or else its last part."""
        item = self.studio.library.catalogue.at(path)
        return path.name if item is None else item.id


def desk(request: Request, needed: SecurityScopes, _: Annotated[object, Security(bearer)]) -> Desk:
    """The caller's desk, if their token covers the route's scopes and they have not asked too often."""
    counter: Counter = request.app.state.counter
    caller = caller_of(request)
    if caller is None:
        # Somebody built an application without `KnownCallers`: nobody is let in by mistake.
        if counter.settings.login:
            raise HTTPException(401)
        caller = LOCAL
    for scope in needed.scopes:
        if not caller.may(scope):
            raise Problem(403, f"This token has not the scope {scope}.")
    counter.throttle.request(caller.owner, writes=request.method not in SAFE_METHODS)
    return Desk(counter, counter.studio.for_owner(caller.owner), caller)


ReadDesk = Annotated[Desk, Security(desk, scopes=["read"])]
DrawDesk = Annotated[Desk, Security(desk, scopes=["draw"])]
TrainDesk = Annotated[Desk, Security(desk, scopes=["train"])]
LibraryDesk = Annotated[Desk, Security(desk, scopes=["library"])]
AdminDesk = Annotated[Desk, Security(desk, scopes=["admin"])]
