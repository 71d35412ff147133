"""The doctor: what is here, what is wrong with it, and how to mend it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio import __version__
from studio.jobs.devices import default_devices
from studio.jobs.ids import is_id
from studio.jobs.job import State
from studio.jobs.processes import is_alive
from studio.jobs.workers import all_workers
from studio.pipelines.errors import StudioError
from studio.pipelines.files import output_errors
from studio.storage.network import file_system_of

if TYPE_CHECKING:
    from studio.service.studio import Studio

_PROBE_SECONDS = 120.0
_LITTLE_SPACE = 2 * 2**30
_OLD_QUEUE_SECONDS = 60.0


@dataclass(frozen=True)
class Finding:
    """Something to know. `mend`: what to do about it; "" for what is fine."""

    what: str
    mend: str = ""

    @property
    def is_wrong(self) -> bool:
        """Whether something should be done."""
        return bool(self.mend)


@dataclass(frozen=True)
class Report:
    """What the doctor found.

    Attributes:
        versions: packages by name; None where one is not installed. devices, attention: by name.
        folders: what is kept where, with its size. findings: what is fine and what is not.
    """

    studio: str
    python: str
    system: str
    versions: Mapping[str, str | None] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)
    attention: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """Whether nothing should be done."""
        return not any(finding.is_wrong for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"is_healthy": self.is_healthy}


def examine(studio: Studio) -> Report:
    """Look at the installation, the devices, the folders and the jobs. Takes some seconds: torch is asked, too."""
    seen, findings = _probe()
    findings += [
        *_devices(seen),
        *_home(studio),
        *_base(),
        *_databases(studio),
        *_workers(studio),
        *_jobs(studio),
        *_library(studio),
    ]
    home = studio.home
    return Report(
        studio=__version__,
        python=str(seen.get("python", sys.version.split()[0])),
        system=str(seen.get("system", sys.platform)),
        versions=seen.get("versions", {}),
        devices={each["name"]: each["about"] for each in seen.get("devices", ())},
        attention=seen.get("attention", {}),
        folders={
            "home": f"{home.root} ({file_system_of(home.root) or 'unknown file system'})",
            **{
                name: f"{path} ({_size(path)})"
                for name, path in (("jobs", home.jobs), ("outputs", home.outputs), ("library", home.library))
            },
            "logs": str(home.logs),
        },
        findings=tuple(findings),
    )


def _probe() -> tuple[dict[str, Any], list[Finding]]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "studio.service.probe"], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {}, [Finding("torch does not come up within two minutes", "look at the GPU's driver; restart the machine")]
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {}, [Finding(f"torch cannot be imported: {last[:200]}", "install it again: pip install -c constraints.txt -e .")]
    return json.loads(done.stdout), []


def _devices(seen: Mapping[str, Any]) -> list[Finding]:
    names = [each["name"] for each in seen.get("devices", ())]
    driver = [name for name in default_devices() if name != "cpu"]
    if driver and seen and not any(name.startswith("cuda") for name in names):
        build = seen.get("cuda")
        why = "this torch is a build for the processor" if build is None else f"this torch is built for CUDA {build}"
        return [
            Finding(f"there is a GPU and torch does not see it: {why}", "install the torch build for your driver; see the README")
        ]
    return []


def _home(studio: Studio) -> list[Finding]:
    root = studio.home.root
    found = []
    probe = root / ".doctor"
    try:
        with output_errors(probe):
            probe.write_bytes(b"")
            probe.unlink()
    except StudioError as error:
        found.append(Finding(str(error), "give this user the right to write there, or set STUDIO_HOME to another folder"))
    free = shutil.disk_usage(root).free
    if free < _LITTLE_SPACE:
        found.append(
            Finding(f"{root} has only {free / 2**30:.1f} GiB left", "studio jobs prune --outputs, studio library trash --empty")
        )
    else:
        found.append(Finding(f"{free / 2**30:.0f} GiB free"))
    left = [path.name for path in studio.home.jobs.iterdir() if is_id(path.name) and not (path / "job.json").exists()]
    if left:
        found.append(
            Finding(f"{len(left)} half-made job folders, as {left[0]}", "the next worker removes them when they are an hour old")
        )
    return found


def _base() -> list[Finding]:
    from importlib import resources

    if (Path(str(resources.files("studio.assets"))) / "base" / "model_index.json").is_file():
        return []
    return [Finding("the embedded base model is not there", "make base-model, or use another one with --base")]


def _databases(studio: Studio) -> list[Finding]:
    found = []
    for database in (studio.store.database, studio.library.catalogue.database):
        if database.set_aside is not None:
            found.append(
                Finding(f"{database.path.name} was damaged; it has been made anew, and the old one is {database.set_aside}")
            )
        elif database.read("PRAGMA quick_check(1)")[0][0] != "ok":
            found.append(
                Finding(f"{database.path} is damaged", "end all of the studio's processes and start again: it is made anew then")
            )
    return found


def _workers(studio: Studio) -> list[Finding]:
    found = []
    alive = [worker for worker in all_workers(studio.store) if worker.is_alive]
    for worker in alive:
        found.append(Finding(f"a worker on {', '.join(worker.devices)}: process {worker.pid} on {worker.host}"))
    waiting = [job for job in studio.queue() if not job.held]
    old = [job for job in waiting if time.time() - job.created > _OLD_QUEUE_SECONDS]
    if studio.store.is_paused and waiting:
        found.append(Finding(f"{len(waiting)} jobs wait because the queue is paused", "studio jobs resume"))
    elif old and not alive:
        found.append(Finding(f"{len(old)} jobs wait and no worker is there", "studio worker"))
    return found


def _jobs(studio: Studio) -> list[Finding]:
    found = []
    living = {worker.id for worker in all_workers(studio.store) if worker.is_alive}
    for job in studio.store.running():
        if job.worker in living:
            continue
        still = job.pid is not None and job.pid_started is not None and is_alive(job.pid, job.pid_started)
        what = "goes on by itself" if still else "was left behind by a worker that died"
        found.append(Finding(f"{job.kind} {job.id} {what}", "studio worker takes it over"))
    failed = studio.store.counts()[State.FAILED]
    if failed:
        found.append(Finding(f"{failed} jobs have failed; studio jobs list --state failed says why"))
    return found


def _library(studio: Studio) -> list[Finding]:
    gone = [item for item in studio.library.catalogue.all() if item.trashed is None and not item.path.exists()]
    if not gone:
        return []
    return [
        Finding(
            f"the files of {len(gone)} things of the library are not where they were, as {gone[0].path}", "studio library rescan"
        )
    ]


def _size(folder: Path) -> str:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return f"{total / 2**30:.2f} GiB" if total >= 2**29 else f"{total / 2**20:.1f} MiB"
