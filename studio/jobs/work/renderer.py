"""The warm worker: `python -m studio.jobs.work.renderer HOME DEVICE MAX_ROWS`.

It keeps the base model and adapters and draws one pass after the other. Jobs come as lines of JSON on standard input and
their ends go out on standard output; when the input closes, it goes. All else about a job stands in the job's folder.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from studio.jobs.child import unexpected
from studio.jobs.folder import JobFolder
from studio.jobs.job import State
from studio.jobs.specs import GenerateSpec
from studio.jobs.work.drawing import run_drawing
from studio.jobs.work.generating import PictureTask, open_task
from studio.jobs.work.grouping import WAIT_SECONDS, Grouper, Pick
from studio.jobs.work.models import Models
from studio.jobs.work.previews import strip_of
from studio.library.library import Library
from studio.pipelines.errors import Cancelled, StudioError
from studio.pipelines.mixed_batch import draw_mixed
from studio.storage.home import Home


class Renderer:
    """The loop: take what has come, choose a pass, draw it."""

    def __init__(self, models: Models, replies: IO[str], max_rows: int) -> None:
        self.models = models
        self.inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.tasks: list[PictureTask] = []
        self.others: list[tuple[JobFolder, int]] = []
        self.arrived: list[tuple[JobFolder, int]] = []
        self.grouper = Grouper(max_rows)
        self.closed = False
        self._alternate = False
        self._replies = replies

    def run(self) -> None:
        """Until the input is closed."""
        while not self.closed:
            self._take(block=not self.tasks and not self.others)
            self._open_arrived()
            self._drop_stopped()
            group = self.grouper.next_group(self.tasks)
            if self.grouper.should_wait(group):
                self._take(block=True, seconds=WAIT_SECONDS / 5)
                continue
            if group and not self._others_turn(group):
                self._draw(group)
            elif self.others:
                self._draw_other(*self.others.pop(0))

    def listen(self, lines: IO[str]) -> None:
        """Put every line of the input into the inbox; None at its end."""
        for line in lines:
            self.inbox.put(json.loads(line))
        self.inbox.put(None)

    # --------------------------------------------------------------------------------------------------------- taking in

    def _take(self, *, block: bool, seconds: float | None = None) -> None:
        try:
            message = self.inbox.get(block=block, timeout=seconds)
        except queue.Empty:
            return
        while True:
            if message is None:
                self.closed = True
                return
            self.arrived.append((JobFolder(Path(message["folder"])), int(message["attempt"])))
            try:
                message = self.inbox.get_nowait()
            except queue.Empty:
                return

    def _open_arrived(self) -> None:
        """Load what new jobs need; between passes only, because it can take a while."""
        while self.arrived:
            self._open(*self.arrived.pop(0))

    def _open(self, folder: JobFolder, attempt: int) -> None:
        self.reply({"touching": [folder.path.name]})
        try:
            handed_in = folder.read_job()
            spec = handed_in.spec
            if not isinstance(spec, GenerateSpec) or spec.is_steered:
                self.others.append((folder, attempt))
                return
            task = open_task(folder, handed_in, attempt, self.models)
        except Exception as error:
            self._fail(folder, attempt, error)
            return
        self.tasks.append(task)
        self._end_if_done(task)

    def _others_turn(self, group: Sequence[Pick]) -> bool:
        """Jobs that draw by themselves alternate with passes, so that neither waits for ever."""
        self._alternate = not self._alternate
        return bool(self.others) and self._alternate

    # ----------------------------------------------------------------------------------------------------------- drawing

    def _draw(self, group: Sequence[Pick]) -> None:
        tasks = list({id(pick.task): pick.task for pick in group}.values())
        self.reply({"touching": [task.folder.path.name for task in tasks]})
        rows = [pick.task.rows[pick.number] for pick in group]
        base = self.models.base(tasks[0].spec.base, tasks[0].spec.dtype)
        shares = {id(task): sum(pick.task is task for pick in group) for task in tasks}
        began: list[float] = []

        def on_step(done: int, total: int) -> None:
            if done == total:
                for task in tasks:
                    task.denoise_seconds += time.monotonic() - began[0]
            for task in tasks:
                task.reporter.progress(task.num_done + shares[id(task)] * done / total * 0.999, len(task.records))

        def should_stop() -> bool:
            began.append(time.monotonic())  # asked before every step
            self._take(block=False)
            return self.closed or all(task.is_stopped() for task in tasks)

        def on_guess(done: int, total: int, latents: Tensor | None) -> None:
            for task in tasks if latents is not None else ():
                assert latents is not None
                own = latents[[pick.task is task for pick in group]]
                task.previews.show(partial(strip_of, base, own))

        try:
            images = draw_mixed(base, rows, tasks[0].shape, on_step=on_step, should_stop=should_stop, on_guess=on_guess).images
        except Cancelled:
            return
        except Exception as error:
            self._group_failed(tasks, group, error)
            return
        for pick, image in zip(group, images, strict=True):
            self._keep(pick, image)
        for task in tasks:
            self._end_if_done(task)

    def _keep(self, pick: Pick, image: Any) -> None:
        task, index = pick
        if task not in self.tasks:
            return
        try:
            path, item = task.shelf.put(index, image, task.records[index])
            task.waiting.remove(index)
            task.reporter.picture(path, index, item)
            task.reporter.progress(task.num_done, len(task.records))
        except Exception as error:
            self.tasks.remove(task)
            self._fail(task.folder, task.attempt, error)

    def _group_failed(self, tasks: Sequence[PictureTask], group: Sequence[Pick], error: Exception) -> None:
        """With several jobs in the pass it is not known whose fault it was: each is drawn by itself then."""
        if isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(tasks) > 1:
            for task in tasks:
                task.shareable = False
            return
        if isinstance(error, torch.OutOfMemoryError) and len(group) > 1:
            self.grouper.max_rows = len(group) // 2
            return
        for task in tasks:
            self.tasks.remove(task)
            self._fail(task.folder, task.attempt, error)

    def _draw_other(self, folder: JobFolder, attempt: int) -> None:
        def should_stop() -> bool:
            return folder.stop_flag.exists() or self._is_closing()

        self.reply({"touching": [folder.path.name]})
        try:
            values = run_drawing(folder, folder.read_job(), self.models, should_stop)
        except Cancelled as stopped:
            if not self.closed:
                self._end(folder, attempt, State.INTERRUPTED, message=str(stopped))
        except Exception as error:
            self._fail(folder, attempt, error)
        else:
            self._end(folder, attempt, State.SUCCEEDED, **values)

    def _is_closing(self) -> bool:
        self._take(block=False)
        return self.closed

    # ------------------------------------------------------------------------------------------------------------ ending

    def _drop_stopped(self) -> None:
        for task in [task for task in self.tasks if task.is_stopped()]:
            self.tasks.remove(task)
            task.previews.forget()
            message = f"stopped with {task.num_done} of {len(task.records)} pictures"
            self._end(task.folder, task.attempt, State.INTERRUPTED, message=message)

    def _end_if_done(self, task: PictureTask) -> None:
        if not task.waiting and task in self.tasks:
            self.tasks.remove(task)
            task.previews.forget()
            facts = {"num_pictures": len(task.records), "denoise_seconds": round(task.denoise_seconds, 3)}
            self._end(task.folder, task.attempt, State.SUCCEEDED, facts=facts)

    def _fail(self, folder: JobFolder, attempt: int, error: Exception) -> None:
        if isinstance(error, StudioError):
            text = str(error)
        elif isinstance(error, MemoryError | torch.OutOfMemoryError):
            text = "There is not enough memory for this; try a batch_size of 1, or smaller pictures."
        else:
            text = unexpected(error)
            traceback.print_exc()
            with folder.log.open("a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
        self._end(folder, attempt, State.FAILED, error=text)

    def _end(self, folder: JobFolder, attempt: int, outcome: str, **values: Any) -> None:
        try:
            folder.write_result(attempt, outcome, **values)
        except StudioError as error:  # a full disk: the line below must go out all the same
            print(f"studio: {error}", file=sys.stderr, flush=True)
            values = {"error": str(error)}
            outcome = State.FAILED
        self.reply({"ended": folder.path.name, "outcome": outcome, "error": values.get("error", "")})

    def reply(self, message: dict[str, Any]) -> None:
        """Send a line to the worker."""
        try:
            print(json.dumps(message), file=self._replies, flush=True)
        except BrokenPipeError:
            self.closed = True


def main(arguments: list[str]) -> int:
    """Draw until standard input is closed."""
    home, device, max_rows = Home(Path(arguments[0])), arguments[1], int(arguments[2])
    # What libraries print must not be taken for replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    library = Library(home)
    renderer = Renderer(Models(library, device), replies, max_rows)
    threading.Thread(target=renderer.listen, args=(sys.stdin,), daemon=True).start()
    renderer.reply({"ready": os.getpid()})
    renderer.run()
    library.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
