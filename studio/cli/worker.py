"""`studio worker`: work on the jobs that were handed in."""

from __future__ import annotations

from typing import Annotated

import typer

from studio.cli import drawing_options
from studio.cli.drawing import use_attention
from studio.cli.jobs_options import Home


def worker(
    device: Annotated[
        list[str] | None,
        typer.Option(
            "--device",
            help="cpu, cuda:0, mps. Repeat for several; by default every GPU, or the processor where there is none.",
            show_default=False,
        ),
    ] = None,
    until_empty: Annotated[bool, typer.Option("--until-empty", help="End when nothing is left to do.")] = False,
    together: Annotated[
        bool | None,
        typer.Option(
            "--together/--apart",
            help="Whether a training and pictures may use one device at the same time. By default on a processor only.",
            show_default=False,
        ),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Pictures in one pass, at most, whoever they are for.")] = 8,
    restart_after: Annotated[int, typer.Option(min=1, help="Pictures after which the warm process is replaced.")] = 2000,
    idle_seconds: Annotated[float, typer.Option(min=0, help="Without work, after which the warm process goes.")] = 600.0,
    grace_seconds: Annotated[float, typer.Option(min=0, help="For a job to stop by itself before it is made to.")] = 30.0,
    attention: drawing_options.Attention = None,
    home: Home = None,
) -> None:
    """Work on the jobs that were handed in, until Ctrl-C.

    Every training has a process of its own, and goes on if the worker dies. Pictures come from one warm process per device,
    which keeps the model and draws requests with different adapters together. Ctrl-C and SIGTERM stop the work so that it goes
    on later.
    """
    from studio.jobs.devices import default_devices
    from studio.jobs.lanes import LaneOptions
    from studio.jobs.starting import log_to_files
    from studio.jobs.store import JobStore
    from studio.jobs.worker import Worker
    from studio.storage.home import find_home

    use_attention(attention)  # the processes that draw and train are started from this one
    store = JobStore(find_home(home))
    log_to_files(store.home, to_terminal=True)
    options = LaneOptions(max_rows=max_rows, restart_after=restart_after, idle_seconds=idle_seconds, grace_seconds=grace_seconds)
    try:
        Worker(store, device or default_devices(), options, together=together).run(until_empty=until_empty)
    finally:
        store.close()
