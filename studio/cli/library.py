"""`studio library`: adapters, concepts, base models, plans and pictures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.cli.jobs_options import AsJson, Home

if TYPE_CHECKING:
    from studio.service import Imported, Item, Studio

app = typer.Typer(
    name="library",
    no_args_is_help=True,
    add_completion=False,
    help="Adapters, concepts, base models, plans and pictures: bring in, find, describe, throw away.",
)

ItemId = Annotated[str, typer.Argument(help="An id, its beginning, or a name.", show_default=False)]
ItemIds = Annotated[list[str], typer.Argument(help="Ids, their beginnings, or names.", show_default=False)]
Tags = Annotated[list[str] | None, typer.Option("--tag", help="A tag to give it. Repeat.", show_default=False)]
KINDS = "adapter, concept, base, plan or picture"


@app.command("import")
def import_things(
    path: Annotated[list[Path], typer.Argument(help="Files, or folders of adapter files.", show_default=False)],
    kind: Annotated[
        str | None,
        typer.Option(help=f"{KINDS}. By default what the file's name says; a folder is one of adapters.", show_default=False),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name; by default what the file says.", show_default=False)] = None,
    tag: Tags = None,
    class_noun: Annotated[str | None, typer.Option(help="Of a concept: what the photos show.", show_default=False)] = None,
    trigger: Annotated[str | None, typer.Option(help="Of a concept: the word for it.", show_default=False)] = None,
    in_place: Annotated[bool, typer.Option("--in-place", help="Refer to adapter files where they are; copy nothing.")] = False,
    home: Home = None,
) -> None:
    """Bring in adapter files of any dialect, folders of photos, base models, plans or pictures.

    Files are read in full first, and refused with the reason when they are damaged or are something else. Exit code 1 if some
    were refused.
    """
    from studio.pipelines.errors import ConfigError
    from studio.service import Kind

    if kind is not None and kind not in list(Kind):
        raise ConfigError(f"--kind {kind}: choose {KINDS}.")
    with _studio(home) as studio:
        library, tags = studio.library, tag or []
        done: list[Imported] = []
        for each in path:
            if kind == Kind.CONCEPT:
                done.append(library.add_concept(each, name=name, class_noun=class_noun, trigger=trigger, tags=tags))
            elif kind == Kind.BASE:
                done.append(library.add_base(each, name=name, tags=tags))
            elif kind == Kind.PLAN:
                done.append(library.add_plan(each, name=name, tags=tags))
            elif kind == Kind.PICTURE:
                done.append(library.add_picture(each, name=name, tags=tags, in_place=in_place))
            elif each.is_dir():
                done += library.add_folder(each, tags=tags, in_place=in_place)
            elif kind == Kind.ADAPTER or name is not None:
                done.append(library.add_adapter(each, name=name, tags=tags, in_place=in_place))
            else:
                done.append(library.add_anything(each, tags=tags, in_place=in_place))
        _report(done)


@app.command("list")
def list_things(
    words: Annotated[list[str] | None, typer.Argument(help="Words to search for.", show_default=False)] = None,
    kind: Annotated[str | None, typer.Option(help=f"{KINDS}.", show_default=False)] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only with this tag. Repeat.", show_default=False)] = None,
    family: Annotated[str | None, typer.Option(help="Only for this model family, as sdxl.", show_default=False)] = None,
    favourites: Annotated[bool, typer.Option("--favourites", help="Only favourites.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: AsJson = False,
    home: Home = None,
) -> None:
    """List or search the library, the latest first. The beginning of a word is enough."""
    from studio.service import ItemFilter

    wanted = ItemFilter(
        kind=kind, words=" ".join(words or []), tags=tag or (), family=family, favourite=True if favourites else None
    )
    with _studio(home) as studio:
        _print(list(studio.items(wanted, limit=limit).items), as_json=as_json)
        typer.echo(f"{studio.library.catalogue.count(wanted)} in all", err=True)


@app.command("show")
def show(item: ItemId, as_json: AsJson = False, home: Home = None) -> None:
    """Show all that is known of one thing."""
    with _studio(home) as studio:
        found = studio.item(item)
        values = found.to_json() | {"thumbnail": str(studio.thumbnail(found.id) or "")}
        if as_json:
            typer.echo(json.dumps(values, indent=2, ensure_ascii=False))
            return
        for name, value in values.items():
            if value not in (None, "", [], {}, False):
                typer.echo(f"{name + ':':<14} {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")


@app.command("edit")
def edit(
    item: ItemId,
    name: Annotated[str | None, typer.Option(help="Its name.", show_default=False)] = None,
    notes: Annotated[str | None, typer.Option(help="Your notes.", show_default=False)] = None,
    trigger: Annotated[str | None, typer.Option(help="The words that call it.", show_default=False)] = None,
    favourite: Annotated[bool | None, typer.Option("--favourite/--no-favourite", help="A favourite.", show_default=False)] = None,
    tag: Tags = None,
    untag: Annotated[list[str] | None, typer.Option(help="A tag to take away. Repeat.", show_default=False)] = None,
    home: Home = None,
) -> None:
    """Change what is written about a thing."""
    with _studio(home) as studio:
        found = studio.library.edit(
            item, name=name, notes=notes, trigger=trigger, favourite=favourite, add_tags=tag or (), remove_tags=untag or ()
        )
        _print([found], as_json=False)


@app.command("trash")
def trash(
    item: Annotated[list[str] | None, typer.Argument(help="Things to put there; without any, what is there.")] = None,
    empty: Annotated[bool, typer.Option("--empty", help="Remove for good what is in the trash.")] = False,
    home: Home = None,
) -> None:
    """Put things into the trash, show what is there, or empty it."""
    from studio.service import ItemFilter

    with _studio(home) as studio:
        for each in item or []:
            _print([studio.trash(each)], as_json=False)
        if empty:
            typer.echo(f"{studio.empty_trash()} removed for good", err=True)
        elif not item:
            _print(list(studio.items(ItemFilter(in_trash=True), limit=1000).items), as_json=False)


@app.command("restore")
def restore(item: ItemIds, home: Home = None) -> None:
    """Take things out of the trash, to where they were."""
    with _studio(home) as studio:
        _print([studio.restore(each) for each in item], as_json=False)


@app.command("duplicates")
def duplicates(home: Home = None) -> None:
    """Show things that do or show the same, though their files differ."""
    with _studio(home) as studio:
        for group in studio.duplicates():
            _print(group, as_json=False)
            typer.echo("")


@app.command("rescan")
def rescan(
    folder: Annotated[list[Path] | None, typer.Argument(help="Where else to look.", show_default=False)] = None, home: Home = None
) -> None:
    """Find files that were moved by hand, by their hash. Exit code 1 if some are nowhere."""
    with _studio(home) as studio:
        found = studio.rescan(folder or [])
        for item in found.moved:
            typer.echo(f"found  {item.name}: {item.path}")
        for item in found.missing:
            typer.echo(f"gone   {item.name}: was at {item.path}")
        if found.missing:
            raise typer.Exit(1)


def _studio(home: Path | None) -> Studio:
    from studio.service import Studio

    return Studio(home)


def _report(done: list[Imported]) -> None:
    for each in done:
        if each.item is None:
            typer.echo(f"refused: {each.refused}", err=True)
        else:
            typer.echo(f"{each.item.id[:10]}  {'new' if each.new else 'known already'}  {each.item.name}")
    refused = sum(each.item is None for each in done)
    if refused:
        typer.echo(f"{refused} of {len(done)} were refused", err=True)
        raise typer.Exit(1)


def _print(items: list[Item], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([item.to_json() for item in items], indent=2, ensure_ascii=False))
        return
    for item in items:
        added = time.strftime("%Y-%m-%d", time.localtime(item.added))
        about = " ".join(str(each) for each in (item.family, item.type, f"rank {item.rank}" if item.rank else None) if each)
        more = [f'"{item.trigger}"'] if item.trigger else []
        more += [f"{item.score:.2f}"] if item.score is not None else []
        more += [f"#{tag}" for tag in item.tags]
        more += ["(gone)"] if item.missing else []
        star = "*" if item.favourite else " "
        typer.echo(f"{item.id[:10]} {star} {item.kind:<8} {added}  {item.name[:40]:<40}  {about:<22} {' '.join(more)}".rstrip())
