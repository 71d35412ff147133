"""The process of one job: `python -m studio.jobs.child FOLDER ATTEMPT DEVICE`.

It reads the job's folder and writes to it, and knows no database: how it ended stands in result.json when it is gone, also
if the worker that started it is gone by then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from studio.jobs.folder import HandedIn, JobFolder
from studio.jobs.job import State
from studio.pipelines.errors import Cancelled, Interrupted, StudioError

_FLAG_SECONDS = 0.3


def main(arguments: list[str]) -> int:
    """Work on the job, write down how it ended, and return the exit code."""
    folder, attempt, device = JobFolder(Path(arguments[0])), int(arguments[1]), arguments[2]
    threading.Thread(target=_watch_flag, args=(folder,), daemon=True).start()
    try:
        handed_in = folder.read_job()
        values = _run(folder, handed_in, device)
    except (Interrupted, Cancelled, KeyboardInterrupt) as stopped:
        folder.write_result(attempt, State.INTERRUPTED, message=str(stopped))
        return 143
    except StudioError as error:
        print(f"studio: {error}", file=sys.stderr, flush=True)
        folder.write_result(attempt, State.FAILED, error=str(error))
        return error.exit_code
    except MemoryError:
        folder.write_result(attempt, State.FAILED, error="There is not enough memory on this machine for the job.")
        return 1
    except Exception as error:
        traceback.print_exc()
        folder.write_result(attempt, State.FAILED, error=unexpected(error))
        return 1
    folder.write_result(attempt, State.SUCCEEDED, **values)
    return 0


def unexpected(error: Exception) -> str:
    """A mistake of ours as a sentence; the traceback is in the log."""
    return f"The studio made a mistake ({type(error).__name__}: {str(error)[:300]}); the job's log has the details."


def _run(folder: JobFolder, handed_in: HandedIn, device: str) -> dict[str, Any]:
    if handed_in.spec.kind == "train":
        from studio.jobs.work.training import run_training

        return run_training(folder, handed_in, folder.home, device)
    from studio.jobs.work.batch import run_batch

    return run_batch(folder, handed_in, device)


def _watch_flag(folder: JobFolder) -> None:
    """Turn the stop flag into the signal that the work listens to, once."""
    while not folder.stop_flag.exists():
        time.sleep(_FLAG_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
