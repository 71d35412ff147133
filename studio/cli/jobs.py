"""`studio jobs`: what was handed in, where it is, and changing one's mind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.cli.jobs_options import AsJson, Home

if TYPE_CHECKING:
    from studio.service import Event, Job, Studio

app = typer.Typer(
    name="jobs", no_args_is_help=True, add_completion=False, help="Jobs: hand in, list, watch, cancel, pause and try again."
)

JobId = Annotated[str, typer.Argument(help="The job's id, as `studio jobs list` prints it.", show_default=False)]
OptionalId = Annotated[
    str | None, typer.Argument(help="The job's id; without one, the whole queue.", show_default=False, metavar="[JOB_ID]")
]


@app.command("add")
def add(
    kind: Annotated[str, typer.Argument(help="train, generate, compose, compare, stylize or batch.", show_default=False)],
    file: Annotated[
        Path | None,
        typer.Argument(
            help="What it needs to know as JSON or YAML; for a training its TOML file, for a plan the plan itself, for a batch "
            "the batch file.",
            show_default=False,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One thing to know, as prompts='[a cat]'. Repeat.", show_default=False),
    ] = None,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    needs: Annotated[
        list[str] | None, typer.Option(help="A job that must have succeeded before. Repeat.", show_default=False)
    ] = None,
    title: Annotated[str | None, typer.Option(help="For lists.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda:0; by default any.", show_default=False)] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds that it may run.", show_default=False)] = None,
    hold: Annotated[bool, typer.Option("--hold", help="Let it wait until it is resumed.")] = False,
    home: Home = None,
) -> None:
    """Hand in a job, and print its id. A worker begins it: `studio worker`.

    Examples:

      studio jobs add train concept.toml

      studio jobs add generate --set prompts="[a red cat in the snow]" --set num_images=4
    """
    from studio.cli.jobs_requests import read_spec
    from studio.service import Submit

    spec = read_spec(kind, file, set_ or [])
    submit = Submit(
        priority=priority, needs=tuple(needs or ()), title=title, device=device, time_limit_seconds=time_limit, held=hold
    )
    with _studio(home) as studio:
        typer.echo(studio.ask(spec, submit).id)


@app.command("list")
def list_jobs(
    state: Annotated[list[str] | None, typer.Option(help="Only those in this state. Repeat.", show_default=False)] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind. Repeat.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """List jobs, the last handed in first."""
    from studio.service import JobFilter

    with _studio(home) as studio:
        found = studio.jobs(JobFilter(states=state, kinds=kind), limit=limit)
        counts = studio.store.counts()
        if as_json:
            typer.echo(json.dumps([_values(job) for job in found], indent=2))
            return
        _table(found)
        told = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
        typer.echo(f"{told or 'no jobs'}{'; the queue is paused' if studio.store.is_paused else ''}", err=True)


@app.command("show")
def show(job_id: JobId, as_json: AsJson = False, home: Home = None) -> None:
    """Show all that is known of a job, with the end of its log."""
    with _studio(home) as studio:
        job, asked, result = studio.job(job_id), studio.request(job_id), studio.result(job_id)
        values = _values(job) | {
            "request": asked.spec.model_dump(mode="json", exclude_defaults=True),
            "needs": studio.store.needs_of(job_id),
            "output_dir": str(result.output_dir),
            "pictures": [str(path) for path in result.pictures],
            "adapter": None if result.adapter is None else str(result.adapter),
            "facts": result.facts,
        }
        if as_json:
            typer.echo(json.dumps(values, indent=2, ensure_ascii=False, default=str))
            return
        for name, value in values.items():
            if value not in (None, "", [], {}):
                typer.echo(
                    f"{name + ':':<20} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}"
                )
        tail = studio.log(job_id, 20)
        if tail:
            typer.echo(f"\n{tail}")


@app.command("watch")
def watch(
    job_id: JobId,
    after: Annotated[int, typer.Option(min=0, help="Only events with a higher number.")] = 0,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """Print what happens to a job until it has ended; the exit code is 1 if it failed."""
    from studio.service import State

    with _studio(home) as studio:
        for event in studio.watch(job_id, after=after):
            typer.echo(
                json.dumps({"number": event.number, "time": event.time, "kind": event.kind, **event.data})
                if as_json
                else _line(event)
            )
        if studio.job(job_id).state == State.FAILED:
            raise typer.Exit(1)


@app.command("cancel")
def cancel(job_id: Annotated[list[str], typer.Argument(help="Ids of jobs.", show_default=False)], home: Home = None) -> None:
    """Take waiting jobs out, and stop running ones; what they made so far stays."""
    with _studio(home) as studio:
        for each in job_id:
            _say(studio.cancel(each))


@app.command("retry")
def retry(job_id: Annotated[list[str], typer.Argument(help="Ids of jobs.", show_default=False)], home: Home = None) -> None:
    """Queue failed or canceled jobs again; a training goes on from its last checkpoint."""
    with _studio(home) as studio:
        for each in job_id:
            _say(studio.retry(each))


@app.command("pause")
def pause(job_id: OptionalId = None, home: Home = None) -> None:
    """Pause one job, or begin no further ones. A running training saves everything and stops."""
    with _studio(home) as studio:
        job = studio.pause(job_id)
        typer.echo("the queue is paused", err=True) if job is None else _say(job)


@app.command("resume")
def resume(job_id: OptionalId = None, home: Home = None) -> None:
    """Go on with a paused job, or with the whole queue."""
    with _studio(home) as studio:
        job = studio.resume(job_id)
        typer.echo("the queue goes on", err=True) if job is None else _say(job)


@app.command("move")
def move(
    job_id: JobId,
    before: Annotated[str | None, typer.Option(help="The waiting job to be begun after it.", show_default=False)] = None,
    priority: Annotated[int | None, typer.Option(help="Its new priority.", show_default=False)] = None,
    home: Home = None,
) -> None:
    """Change a waiting job's place in the queue."""
    with _studio(home) as studio:
        _say(studio.reorder(job_id, before=before, priority=priority))


@app.command("prune")
def prune(
    days: Annotated[float, typer.Option(min=0, help="Only those that ended so many days ago.")] = 7.0,
    outputs: Annotated[bool, typer.Option("--outputs", help="Remove what they made, too.")] = False,
    home: Home = None,
) -> None:
    """Forget ended jobs. Pictures and adapters stay, unless --outputs."""
    with _studio(home) as studio:
        gone = studio.prune(days * 86_400.0, outputs=outputs)
        typer.echo(f"{len(gone)} jobs forgotten", err=True)


def _studio(home: Path | None) -> Studio:
    from studio.service import Studio

    return Studio(home)


def _say(job: Job) -> None:
    typer.echo(f"{job.id} {'paused' if job.held else job.state}{': ' + job.message if job.message else ''}")


def _values(job: Job) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(job)


def _table(found: list[Job]) -> None:
    for job in found:
        state = "paused" if job.held and not job.is_ended else job.state
        share = f"{job.progress:>4.0%}" if job.state in ("running", "canceling") else "    "
        age = time.strftime("%m-%d %H:%M", time.localtime(job.created))
        about = job.error or job.message
        typer.echo(f"{job.id}  {age}  {job.kind:<8} {state:<11} {share}  {job.title[:48]}{'  | ' + about[:100] if about else ''}")


def _line(event: Event) -> str:
    moment = time.strftime("%H:%M:%S", time.localtime(event.time))
    told = " ".join(f"{name}={value}" for name, value in event.data.items() if value not in ("", None, False))
    return f"{event.number:>5} {moment} {event.kind:<9} {told}"
