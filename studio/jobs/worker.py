"""The worker: claims jobs for its devices, sees to their processes, and picks up what dead workers left."""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack

from filelock import FileLock, Timeout

from studio.jobs import claims
from studio.jobs.attending import Running
from studio.jobs.claims import Claimant
from studio.jobs.ids import is_id
from studio.jobs.job import Job
from studio.jobs.lanes import PROCESS_KINDS, LaneOptions, ProcessLane, RenderLane
from studio.jobs.rebuilding import add_missing
from studio.jobs.store import JobStore
from studio.jobs.workers import beat, living_workers, register, unregister
from studio.pipelines.errors import UserError
from studio.training.signals import StopRequest, catch_stop_signals

log = logging.getLogger("studio.worker")

TICK_SECONDS = 0.05
IDLE_TICK_SECONDS = 0.25
SWEEP_SECONDS = 10.0
LEFTOVER_SECONDS = 3600.0
LOST_ROW_SECONDS = 60.0


class Worker:
    """One process that works on jobs.

    Args:
        devices: as "cpu", "cuda:0". On a GPU a training and pictures take turns, because they would not fit into its memory
            together, unless `together`; on a processor they go side by side.

    Raises:
        UserError: another worker has one of the devices.
    """

    def __init__(
        self,
        store: JobStore,
        devices: Sequence[str],
        options: LaneOptions | None = None,
        *,
        together: bool | None = None,
    ) -> None:
        self.store = store
        self.devices = tuple(devices)
        self.claimant = Claimant.here(f"worker-{secrets.token_hex(4)}")
        chosen = LaneOptions() if options is None else options
        home = store.home
        self.trainers = {device: ProcessLane(store, self.claimant, device, chosen) for device in devices}
        self.renderers = {device: RenderLane(store, self.claimant, device, chosen, home.logs) for device in devices}
        self.together = together
        self._swept = self._beaten = 0.0
        self._locks = ExitStack()

    def run(self, stop: StopRequest | None = None, *, until_empty: bool = False) -> None:
        """Work until asked to stop; with `until_empty` also until nothing is left to do."""
        if stop is None:
            with catch_stop_signals() as request:
                self.run(request, until_empty=until_empty)
            return
        self._lock_devices()
        register(self.store, self.claimant.worker, self.devices)
        clean_up(self.store)
        log.info("worker %s on %s, home %s", self.claimant.worker, ", ".join(self.devices), self.store.home.root)
        try:
            while not stop:
                self.round()
                if until_empty and not self.is_busy and not self._work_is_waiting():
                    return
                time.sleep(TICK_SECONDS if self.is_busy else IDLE_TICK_SECONDS)
        finally:
            self.leave()

    @property
    def is_busy(self) -> bool:
        """Whether any job is at work."""
        return any(lane.is_busy for lanes in (self.trainers, self.renderers) for lane in lanes.values())

    def round(self) -> None:
        """Look once at everything."""
        now = time.monotonic()
        if now - self._swept >= SWEEP_SECONDS or not self._swept:
            self._swept = now
            self.sweep()
        if now - self._beaten >= claims.LEASE_SECONDS / 6:
            self._beaten = now
            beat(self.store, self.claimant.worker)
        for device in self.devices:
            trainer, renderer = self.trainers[device], self.renderers[device]
            both = device == "cpu" if self.together is None else self.together
            trainer.look(may_begin=both or not renderer.is_busy)
            renderer.look(may_begin=both or not trainer.is_busy)

    def sweep(self) -> list[Job]:
        """Take over the jobs of dead workers: what still runs is seen to, what ended is written down, the rest is queued."""
        if self.store.database.was_replaced():
            log.warning("the table was damaged and has been made anew; going on with the new one")
            self.store.database.close()
            register(self.store, self.claimant.worker, self.devices)
        taken = []
        living = {worker.id for worker in living_workers(self.store)} | {self.claimant.worker}
        for orphan in claims.orphans(self.store, self.claimant, living):
            lives = claims.process_lives(orphan, self.claimant)
            lane = self._free_lane(orphan) if lives else None
            if lives and lane is None:
                continue  # a warm process that is on its way out, or a training on a device that is not ours
            job = claims.adopt(self.store, self.claimant, orphan)
            if job is None:
                continue
            taken.append(job)
            if lane is not None:
                log.info("%s goes on in process %s; its worker is gone", job.id, job.pid)
                lane.adopt(job)
            else:
                ended = Running.of(self.store, job).settle(self.store)
                log.info("%s was left behind: %s", job.id, "lost" if ended is None else ended.state)
        return taken

    def leave(self) -> None:
        """Stop all that is at work so that it can go on later, and give the devices back."""
        for trainer in self.trainers.values():
            trainer.leave()
        for renderer in self.renderers.values():
            renderer.leave()
        unregister(self.store, self.claimant.worker)
        self._locks.close()

    def _free_lane(self, job: Job) -> ProcessLane | None:
        lane = self.trainers.get(job.runs_on or "")
        return lane if job.kind in PROCESS_KINDS and lane is not None and not lane.is_busy else None

    def _work_is_waiting(self) -> bool:
        """Whether there is a job that this worker could begin now, or begin when another has ended."""
        if self.store.is_paused:
            return False
        sql = "SELECT 1 FROM jobs WHERE state = 'queued' AND held = 0 AND (device IS NULL OR device IN ({})) LIMIT 1"
        marks = ", ".join("?" * len(self.devices))
        return bool(self.store.database.read(sql.format(marks), self.devices))

    def _lock_devices(self) -> None:
        for device in self.devices:
            lock = FileLock(self.store.home.root / f"device-{device.replace(':', '-')}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout as error:
                self._locks.close()
                raise UserError(f"Another worker has {device} already; `studio doctor` shows which.") from error
            self._locks.callback(lock.release)


def clean_up(store: JobStore) -> None:
    """Remove what killed processes left half-made, and bring in jobs whose row was not written any more."""
    home, now = store.home, time.time()
    for folder in home.jobs.iterdir():
        half_made = is_id(folder.name) and not (folder / "job.json").exists() and now - folder.stat().st_mtime > LEFTOVER_SECONDS
        if half_made or folder.name.startswith(".removed-"):
            shutil.rmtree(folder, ignore_errors=True)
    for left in home.outputs.rglob(".*.part"):
        if now - left.stat().st_mtime > LEFTOVER_SECONDS:
            left.unlink(missing_ok=True)
    young = [folder.name for folder in home.jobs.iterdir() if now - folder.stat().st_mtime < LOST_ROW_SECONDS]
    known = [row[0] for row in store.database.read("SELECT id FROM jobs")]
    add_missing(store.database, home, known=[*known, *young])
