"""A batch as jobs of SLURM: each job draws a share of the groups into the one folder, which all of them see.

What a job is given is the path of a JSON file; the function that reads it is this module's own. A share that is stopped or
requeued goes on where it was, as any batch does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from studio.batch.runner import BatchOptions, BatchOutcome, plan_batch, run_batch, write_batch_reports
from studio.pipelines.errors import MissingDependencyError, StudioError
from studio.pipelines.files import atomic_write_json

MAX_HOURS = 24


def run_on_slurm(
    options: BatchOptions,
    *,
    num_jobs: int,
    log_dir: Path | None = None,
    cluster: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> BatchOutcome:
    """Hand in `num_jobs` jobs, wait for them, and write the report.

    Args:
        log_dir: for scripts and logs; it must be seen by all nodes, as must the batch's files and its output.
        cluster: "slurm"; "local" and "debug" run the jobs on this machine. By default slurm where there is one.
        parameters: more for submitit, such as `slurm_partition`.

    Raises:
        StudioError: a share failed; says what its log says.
    """
    try:
        import submitit
    except ImportError as error:
        raise MissingDependencyError(
            'Jobs of SLURM need submitit: pip install "diffusion-customization-studio[slurm]".'
        ) from error
    planned = plan_batch(options)  # what is wrong is told before anything waits in a queue
    settings = planned.settings
    begun = time.monotonic()
    folder = options.output.resolve()
    shares = [
        replace(
            options,
            file=options.file.resolve(),
            output=folder,
            shard=(number, num_jobs),
            batch_size=settings.batch_size,
            threads=settings.threads,
            packs=settings.packs,
            dtype=settings.dtype,
            adapters_dirs=tuple(each.resolve() for each in (Path(), *options.adapters_dirs)),
            continue_on_error=True,
            reports=False,
        )
        for number in range(1, num_jobs + 1)
    ]
    specs = []
    for share in shares:
        specs.append(folder / "shares" / f"{share.shard[0]}-of-{num_jobs}.json")
        atomic_write_json(specs[-1], _values(share))
    executor = submitit.AutoExecutor(folder=(log_dir or folder / "slurm").resolve(), cluster=cluster)
    on_gpu = 1 if options.device.startswith("cuda") else 0
    executor.update_parameters(
        name="studio-batch",
        timeout_min=MAX_HOURS * 60,
        gpus_per_node=on_gpu,
        cpus_per_task=settings.threads,
        **(parameters or {}),
    )
    jobs = executor.map_array(run_share, [str(spec) for spec in specs])
    outcome = BatchOutcome(total=len(planned.tasks) + len(planned.refused))
    for job in jobs:
        try:
            values = json.loads(job.result())
        except Exception as error:  # submitit has errors of many kinds for a job that did not end well
            raise StudioError(f"A job of the batch did not end well ({job.paths.stderr}): {_short(error)}") from error
        outcome.done_now += values["done_now"]
        outcome.failed |= values["failed"]
    outcome.done_before = len(planned.tasks) - outcome.done_now - len(outcome.failed) + len(planned.refused)
    outcome.seconds = time.monotonic() - begun
    write_batch_reports(planned, options)
    return outcome


def run_share(spec: str) -> str:
    """Draw a share on a node: the path of a JSON file in, a JSON table out."""
    from studio.batch.executors.local import LocalExecutor
    from studio.batch.workshop import Workshop

    values = json.loads(Path(spec).read_text(encoding="utf-8"))
    paths = {name: None if values[name] is None else Path(values[name]) for name in ("file", "output", "home")}
    options = BatchOptions(
        **{
            **values,
            **paths,
            "shard": tuple(values["shard"]),
            "adapters_dirs": tuple(Path(each) for each in values["adapters_dirs"]),
        }
    )
    outcome = run_batch(options, lambda settings: LocalExecutor(Workshop(settings.device)), argv=())
    return json.dumps({"done_now": outcome.done_now, "failed": outcome.failed})


def _values(share: BatchOptions) -> dict[str, Any]:
    values = asdict(share)
    return values | {
        "file": str(share.file),
        "output": str(share.output),
        "home": None if share.home is None else str(share.home.resolve()),
        "adapters_dirs": [str(each) for each in share.adapters_dirs],
        "fields": dict(share.fields),
    }


def _short(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
