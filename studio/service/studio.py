"""`Studio`: every verb of the studio, as a person would say it."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.jobs import changes
from studio.jobs.folder import Event, HandedIn
from studio.jobs.job import ENDED, Job
from studio.jobs.specs import (
    BatchSpec,
    CompareSpec,
    ComposeSpec,
    ConflictsSpec,
    GenerateSpec,
    JobSpec,
    StylizeSpec,
    Submit,
    TrainSpec,
)
from studio.jobs.store import JobFilter, JobStore
from studio.library import upkeep
from studio.library.catalogue import ItemFilter, Page
from studio.library.item import Item
from studio.library.library import Imported, Library
from studio.pipelines.errors import StudioError, UserError
from studio.service import requests
from studio.storage.home import Home, find_home

if TYPE_CHECKING:
    from studio.service.choices import StrategyFacts
    from studio.service.doctor import Report
    from studio.service.estimates import TrainingEstimate

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class JobResult:
    """What a job made.

    Attributes:
        output_dir: its folder. pictures: in their order. items: ids in the library of what was put there.
        adapter: a training's file. facts: what else the job says: notes, scores, counts.
    """

    output_dir: Path
    pictures: tuple[Path, ...] = ()
    items: tuple[str, ...] = ()
    adapter: Path | None = None
    facts: dict[str, Any] | None = None


class Studio:
    """The studio at one home folder. Any number of processes may have one open at the same time.

    Args:
        home: by default `STUDIO_HOME`, or where this system keeps a person's data.
        owner: whose jobs and things these are; "" on a machine of one person.

    Raises:
        StudioError: the home cannot be used; says why.
    """

    def __init__(self, home: Home | Path | str | None = None, *, owner: str = "") -> None:
        self.home = home if isinstance(home, Home) else find_home(home)
        self.owner = owner
        self.store = JobStore(self.home)
        self.library = Library(self.home)

    def close(self) -> None:
        """Close the databases."""
        self.store.close()
        self.library.close()

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def for_owner(self, owner: str) -> Studio:
        """This studio for another owner; both have the same databases open, and one `close` is enough."""
        other = copy.copy(self)
        other.owner = owner
        return other

    # ---------------------------------------------------------------------------------------------------------- ask for

    def train(self, spec: TrainSpec, submit: Submit | None = None) -> Job:
        """Teach the model a concept. Raises ConfigError for settings that cannot be, MissingFileError without photos."""
        return self._hand_in(requests.resolved_train(self.library, spec), submit)

    def generate(self, spec: GenerateSpec, submit: Submit | None = None) -> Job:
        """Draw pictures from prompts."""
        resolved = requests.resolved_generate(self.library, spec)
        return self._hand_in(resolved, submit, requests.affinity_of(resolved))

    def compose(self, spec: ComposeSpec, submit: Submit | None = None) -> Job:
        """Draw a plan with several adapters."""
        return self._hand_in(requests.resolved_compose(self.library, spec), submit)

    def compare(self, spec: CompareSpec, submit: Submit | None = None) -> Job:
        """Draw a plan by several strategies, side by side, with scores."""
        return self._hand_in(requests.resolved_compose(self.library, spec), submit)

    def conflicts(self, spec: ConflictsSpec, submit: Submit | None = None) -> Job:
        """Measure how much a plan's adapters get in each other's way."""
        return self._hand_in(requests.resolved_compose(self.library, spec), submit)

    def stylize(self, spec: StylizeSpec, submit: Submit | None = None) -> Job:
        """Draw the content of one picture in the style of another."""
        return self._hand_in(requests.resolved_stylize(self.library, spec), submit)

    def batch(self, spec: BatchSpec, submit: Submit | None = None) -> Job:
        """Run a file of requests."""
        return self._hand_in(requests.resolved_batch(spec), submit)

    def ask(self, spec: JobSpec, submit: Submit | None = None) -> Job:
        """Hand in a job of any kind."""
        verbs: dict[type[JobSpec], Callable[..., Job]] = {
            TrainSpec: self.train,
            GenerateSpec: self.generate,
            CompareSpec: self.compare,
            ConflictsSpec: self.conflicts,
            ComposeSpec: self.compose,
            StylizeSpec: self.stylize,
            BatchSpec: self.batch,
        }
        return verbs[type(spec)](spec, submit)

    # ------------------------------------------------------------------------------------------------------------- jobs

    def job(self, job_id: str) -> Job:
        """One job. Raises MissingFileError when there is none of that id."""
        return self.store.get(job_id)

    def jobs(self, wanted: JobFilter | None = None, *, limit: int = 100, before: float | None = None) -> list[Job]:
        """Jobs, the last handed in first; `before` is the `position` of the last one of the page before."""
        return self.store.list(wanted, limit=limit, before=before)

    def queue(self) -> list[Job]:
        """Waiting jobs in the order in which they will be begun."""
        return self.store.queue()

    def request(self, job_id: str) -> HandedIn:
        """What was asked for, with every default that was filled in."""
        return self.store.folder(self.job(job_id).id).read_job()

    def result(self, job_id: str) -> JobResult:
        """What a job made so far. Raises MissingFileError when there is no such job."""
        handed_in = self.request(job_id)
        events = list(self.store.folder(job_id).events())
        pictures = dict.fromkeys(Path(str(event.data["path"])) for event in events if event.kind == "picture")
        items = dict.fromkeys(str(event.data["item"]) for event in events if event.data.get("item"))
        values = self.store.folder(job_id).read_result() or {}
        adapter = values.get("adapter")
        return JobResult(
            output_dir=handed_in.output_dir,
            pictures=tuple(path for path in pictures if path.is_file()),
            items=tuple(items),
            adapter=None if adapter is None else Path(adapter),
            facts=values.get("facts", {}),
        )

    def log(self, job_id: str, num_lines: int = 50) -> str:
        """The last lines that the job's process printed."""
        return self.store.folder(self.job(job_id).id).log_tail(num_lines)

    def cancel(self, job_id: str) -> Job:
        """Take a waiting job out, or stop a running one; what it made so far stays."""
        return changes.cancel(self.store, job_id)

    def retry(self, job_id: str) -> Job:
        """Queue a failed or canceled job again; a training goes on from its last checkpoint."""
        return changes.retry(self.store, job_id)

    def pause(self, job_id: str | None = None) -> Job | None:
        """Pause one job, or (without an id) begin no further ones; a running training saves everything and stops."""
        if job_id is not None:
            return changes.hold(self.store, job_id)
        self.store.pause(True)
        return None

    def resume(self, job_id: str | None = None) -> Job | None:
        """Go on with a paused job, or with the whole queue."""
        if job_id is not None:
            return changes.release(self.store, job_id)
        self.store.pause(False)
        return None

    def wish(self, job_id: str, what: str) -> None:
        """Ask a running training to "save" or to "sample" now, besides what is due. Raises UserError when it is not training."""
        from studio.training.wishes import wish

        job = self.job(job_id)
        if job.kind != "train" or job.state != "running":
            raise UserError(f"The job {job_id} is no training that is running.")
        wish(self.request(job_id).output_dir, what)

    def reorder(self, job_id: str, *, before: str | None = None, priority: int | None = None) -> Job:
        """Move a waiting job to before another one, or give it another priority."""
        return changes.move(self.store, job_id, before=before, priority=priority)

    def prune(self, older_than_seconds: float = 0.0, *, outputs: bool = False) -> list[str]:
        """Forget ended jobs, and return their ids.

        Args:
            outputs: remove what they made, too, unless it was written to a folder that somebody named.
        """
        return changes.prune(self.store, older_than_seconds, outputs=outputs)

    def watch(
        self,
        job_id: str,
        *,
        after: int = 0,
        follow: bool = True,
        should_stop: Callable[[], bool] | None = None,
        poll_seconds: float = _POLL_SECONDS,
    ) -> Iterator[Event]:
        """What happens to a job, event by event, until it has ended. It can be watched from anywhere, again and again.

        Args:
            after: only events with a higher number. follow: False ends after what has happened so far.
        """
        folder = self.store.folder(self.job(job_id).id)
        position = number = 0
        while True:
            is_over = self.job(job_id).state in ENDED
            for event, end in folder.events_from(position, number):
                position, number = end, event.number
                if event.number > after:
                    yield event
            if is_over or not follow or (should_stop is not None and should_stop()):
                return
            time.sleep(poll_seconds)

    def wait(self, job_id: str, timeout_seconds: float | None = None) -> Job:
        """Wait until a job has ended. Raises StudioError when it takes longer than `timeout_seconds`."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            job = self.job(job_id)
            if job.is_ended:
                return job
            if deadline is not None and time.monotonic() > deadline:
                raise StudioError(f"The job {job_id} is still {job.state} after {timeout_seconds:g} seconds: {job.message}")
            time.sleep(_POLL_SECONDS)

    def ensure_worker(self, devices: Sequence[str] = ()) -> None:
        """Start a worker in the background unless one is at work for this home; it outlives this process."""
        from studio.jobs.starting import ensure_worker

        ensure_worker(self.store, devices)

    # ---------------------------------------------------------------------------------------------------------- library

    def import_adapter(
        self, path: Path | str, *, name: str | None = None, tags: Sequence[str] = (), in_place: bool = False
    ) -> Imported:
        """Bring in an adapter file of any dialect. Raises AdapterFileError for one that is refused, with the reason."""
        return self.library.add_adapter(Path(path), name=name, tags=tags, owner=self.owner, in_place=in_place)

    def import_folder(
        self,
        folder: Path | str,
        *,
        tags: Sequence[str] = (),
        in_place: bool = False,
        on_file: Callable[[int, int], None] | None = None,
    ) -> list[Imported]:
        """Bring in all adapter files of a folder; those that are refused are in the result with the reason."""
        return self.library.add_folder(Path(folder), tags=tags, owner=self.owner, in_place=in_place, on_file=on_file)

    def import_concept(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        class_noun: str | None = None,
        trigger: str | None = None,
        tags: Sequence[str] = (),
    ) -> Imported:
        """Bring in a folder of photos."""
        return self.library.add_concept(
            Path(path), name=name, class_noun=class_noun, trigger=trigger, tags=tags, owner=self.owner
        )

    def import_picture(self, path: Path | str, *, name: str | None = None, tags: Sequence[str] = ()) -> Imported:
        """Bring in a picture, with what it says about how it was made."""
        return self.library.add_picture(Path(path), name=name, tags=tags, owner=self.owner)

    def import_plan(self, path: Path | str, *, name: str | None = None, tags: Sequence[str] = ()) -> Imported:
        """Bring in a plan of a composition."""
        return self.library.add_plan(Path(path), name=name, tags=tags, owner=self.owner)

    def import_base(self, path: Path | str, *, name: str | None = None, tags: Sequence[str] = ()) -> Imported:
        """Note a base model in a folder or a checkpoint; it stays where it is."""
        return self.library.add_base(Path(path), name=name, tags=tags, owner=self.owner)

    def items(self, wanted: ItemFilter | None = None, *, limit: int = 100, cursor: str | None = None) -> Page:
        """Things of the library, the latest first."""
        return self.library.catalogue.page(wanted, limit=limit, cursor=cursor)

    def search(self, words: str, *, kind: str | None = None, limit: int = 100) -> list[Item]:
        """Things whose name, trigger words, tags, notes or prompt have all these words, or words that begin so."""
        return list(self.items(ItemFilter(words=words, kind=kind), limit=limit).items)

    def item(self, text: str, kind: str | None = None) -> Item:
        """One thing, by its id, the beginning of its id, or its name."""
        return self.library.catalogue.get(text, kind)

    def thumbnail(self, item_id: str) -> Path | None:
        """A small picture of a thing, if there is one."""
        return self.library.thumbnail(self.item(item_id).id)

    def tag(self, item_id: str, *tags: str) -> Item:
        """Add tags."""
        return self.library.edit(item_id, add_tags=tags)

    def untag(self, item_id: str, *tags: str) -> Item:
        """Remove tags."""
        return self.library.edit(item_id, remove_tags=tags)

    def edit(
        self,
        item_id: str,
        *,
        name: str | None = None,
        notes: str | None = None,
        trigger: str | None = None,
        class_noun: str | None = None,
        favourite: bool | None = None,
    ) -> Item:
        """Change what is written about a thing."""
        return self.library.edit(item_id, name=name, notes=notes, trigger=trigger, class_noun=class_noun, favourite=favourite)

    def trash(self, item_id: str) -> Item:
        """Put a thing into the trash."""
        return upkeep.trash(self.library, item_id)

    def restore(self, item_id: str) -> Item:
        """Take a thing out of the trash again."""
        return upkeep.restore(self.library, item_id)

    def empty_trash(self, older_than_seconds: float = 0.0) -> int:
        """Remove for good what has been in the trash for so long, and return how many things that were."""
        return upkeep.empty_trash(self.library, older_than_seconds)

    def duplicates(self) -> list[list[Item]]:
        """Groups of things that do or show the same, though their files differ."""
        return self.library.catalogue.same_content()

    def rescan(self, folders: Iterable[Path] = ()) -> upkeep.Rescan:
        """Find files that were moved by hand, by their hash; those that are nowhere are marked as missing."""
        return upkeep.rescan(self.library, folders)

    # ---------------------------------------------------------------------------------------------------------- choosing

    def strategies(self) -> list[StrategyFacts]:
        """The ways to bring adapters together in one picture."""
        from studio.service.choices import strategy_facts

        return strategy_facts()

    def recipe(self, picture: Path | str) -> dict[str, Any] | None:
        """How a picture was made, from its file; None if it does not say. Raises ImageError for what is no picture."""
        from studio.service.choices import recipe_in

        return recipe_in(Path(picture))

    def estimate_training(self, settings: dict[str, dict[str, Any]], num_photos: int) -> TrainingEstimate:
        """What a training will be like: all settings, and about how long it takes. Raises ConfigError for wrong ones."""
        from studio.service.estimates import estimate_training

        return estimate_training(self.store, settings, num_photos)

    # ----------------------------------------------------------------------------------------------------------- health

    def doctor(self) -> Report:
        """What is here, what is wrong, and how to mend it."""
        from studio.service.doctor import examine

        return examine(self)

    # ------------------------------------------------------------------------------------------------------- underneath

    def _hand_in(self, spec: JobSpec, submit: Submit | None, affinity: str = "") -> Job:
        wanted = Submit() if submit is None else submit
        if not wanted.owner and self.owner:
            wanted = wanted.model_copy(update={"owner": self.owner})
        return self.store.submit(spec, wanted, affinity)
