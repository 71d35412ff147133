"""The studio behind the buttons: one facade that the command line, batches, the HTTP API and the page call.

    from studio.service import Studio, GenerateSpec

    studio = Studio()
    job = studio.generate(GenerateSpec(prompts=("a red cat",)))
    studio.ensure_worker()
    for event in studio.watch(job.id):
        ...

Importing it loads no torch.
"""

from studio.jobs.folder import Event, HandedIn
from studio.jobs.job import Job, State
from studio.jobs.specs import (
    AdapterChoice,
    BatchSpec,
    CompareSpec,
    ComposeSpec,
    ConflictsSpec,
    ControlPicture,
    GenerateSpec,
    JobSpec,
    StartPicture,
    StylizeSpec,
    Submit,
    TrainSpec,
)
from studio.jobs.store import JobFilter
from studio.library.catalogue import ItemFilter, Page
from studio.library.item import Item, Kind
from studio.library.library import Imported
from studio.library.upkeep import Rescan
from studio.service.studio import JobResult, Studio
from studio.storage.home import Home, find_home

__all__ = [
    "AdapterChoice",
    "BatchSpec",
    "CompareSpec",
    "ComposeSpec",
    "ConflictsSpec",
    "ControlPicture",
    "Event",
    "GenerateSpec",
    "HandedIn",
    "Home",
    "Imported",
    "Item",
    "ItemFilter",
    "Job",
    "JobFilter",
    "JobResult",
    "JobSpec",
    "Kind",
    "Page",
    "Rescan",
    "StartPicture",
    "State",
    "Studio",
    "StylizeSpec",
    "Submit",
    "TrainSpec",
    "find_home",
]
