"""The catalogue: every item as a JSON file, and a database over these files to list and search them.

The entry's file is written first and is what counts; a lost or damaged database is made anew from the files.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.library.item import Item
from studio.library.migrations import MIGRATIONS
from studio.pipelines.errors import MissingFileError, UserError
from studio.pipelines.files import atomic_write_json
from studio.storage.database import Database
from studio.storage.home import Home

_SHORTEST_ID = 6
_HEX = re.compile(r"[0-9a-f]{6,64}")


@dataclass(frozen=True, kw_only=True)
class ItemFilter:
    """Which items a list shows; None does not filter.

    Attributes:
        words: full text: names, trigger words, tags, notes, prompts. Each word's beginning is enough; all must be there.
        tags: all of them. owners: any of them. in_trash: those in the trash instead of the others.
    """

    kind: str | None = None
    words: str = ""
    tags: Sequence[str] = ()
    family: str | None = None
    type: str | None = None
    favourite: bool | None = None
    owner: str | None = None
    owners: Sequence[str] | None = None
    missing: bool | None = None
    in_trash: bool = False


@dataclass(frozen=True)
class Page:
    """Items, the latest first. next: the cursor of the page after; None after the last."""

    items: tuple[Item, ...]
    next: str | None


class Catalogue:
    """All items of one home."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.entries = home.library / "entries"
        self.database = Database(home.library_database, MIGRATIONS, self._rebuild)

    def close(self) -> None:
        """Close the database."""
        self.database.close()

    def put(self, item: Item) -> Item:
        """Add an item, or replace what is known of it."""
        atomic_write_json(self.entries / f"{item.id}.json", item.to_json())
        with self.database.write() as connection:
            _index(connection, item)
        return item

    def forget(self, item_id: str) -> None:
        """Remove an item's entry; not its file."""
        (self.entries / f"{item_id}.json").unlink(missing_ok=True)
        with self.database.write() as connection:
            _drop(connection, item_id)

    def find(self, item_id: str) -> Item | None:
        """The item with this very id."""
        rows = self.database.read("SELECT entry FROM items WHERE id = ?", (item_id,))
        return _item(rows[0]) if rows else None

    def get(self, text: str, kind: str | None = None) -> Item:
        """The item that `text` means: its id, the beginning of its id, or its name.

        Raises:
            MissingFileError: there is none. UserError: it could be several.
        """
        found = self.matching(text, kind)
        what = "item" if kind is None else kind
        if not found:
            raise MissingFileError(f"The library has no {what} {text!r}; `studio library list` shows what it has.")
        if len(found) > 1:
            listed = ", ".join(f"{item.name} ({item.id[:10]})" for item in found[:4])
            raise UserError(f"{text!r} could be several of the library's {what}s: {listed}. Give the beginning of the id.")
        return found[0]

    def matching(self, text: str, kind: str | None = None) -> list[Item]:
        """Items with this id, or else with an id that begins so, or else with this name; those in the trash left out."""
        of_kind, values = ("", []) if kind is None else (" AND kind = ?", [kind])
        if _HEX.fullmatch(text):
            rows = self.database.read(
                f"SELECT entry FROM items WHERE id >= ? AND id < ? AND trashed IS NULL{of_kind} LIMIT 9",  # noqa: S608
                [text, text + "g", *values],
            )
            if rows:
                return [_item(row) for row in rows]
        rows = self.database.read(
            f"SELECT entry FROM items WHERE name = ? AND trashed IS NULL{of_kind} ORDER BY added DESC LIMIT 9",  # noqa: S608
            [text, *values],
        )
        return [_item(row) for row in rows]

    def page(self, wanted: ItemFilter | None = None, *, limit: int = 100, cursor: str | None = None) -> Page:
        """Items that `wanted` describes, the latest first.

        Args:
            cursor: `next` of the page before.

        Raises:
            UserError: for a cursor that is none.
        """
        clauses, values = _where(ItemFilter() if wanted is None else wanted)
        if cursor is not None:
            added, item_id = _cursor(cursor)
            clauses.append("(added, id) < (?, ?)")
            values.extend((added, item_id))
        sql = f"SELECT entry, added, id FROM items WHERE {' AND '.join(clauses)} ORDER BY added DESC, id DESC LIMIT ?"  # noqa: S608
        rows = self.database.read(sql, [*values, limit + 1])
        shown = rows[:limit]
        more = f"{shown[-1]['added']!r}:{shown[-1]['id']}" if len(rows) > limit else None
        return Page(tuple(_item(row) for row in shown), more)

    def count(self, wanted: ItemFilter | None = None) -> int:
        """How many items `wanted` describes."""
        clauses, values = _where(ItemFilter() if wanted is None else wanted)
        return int(self.database.read(f"SELECT COUNT(*) FROM items WHERE {' AND '.join(clauses)}", values)[0][0])  # noqa: S608

    def all(self) -> Iterator[Item]:
        """Every item, those in the trash too."""
        for row in self.database.read("SELECT entry FROM items ORDER BY added, id"):
            yield _item(row)

    def at(self, path: Path) -> Item | None:
        """The item whose file is at `path`."""
        rows = self.database.read("SELECT entry FROM items WHERE path = ?", (str(path),))
        return _item(rows[0]) if rows else None

    def same_content(self) -> list[list[Item]]:
        """Groups of items that do or show the same, though their files differ."""
        rows = self.database.read(
            "SELECT entry, content FROM items WHERE trashed IS NULL AND content IN (SELECT content FROM items "
            "WHERE trashed IS NULL AND content <> '' GROUP BY content HAVING COUNT(*) > 1) ORDER BY content, added"
        )
        groups: dict[str, list[Item]] = {}
        for row in rows:
            groups.setdefault(row["content"], []).append(_item(row))
        return list(groups.values())

    def tags(self) -> dict[str, int]:
        """Every tag, and how many items have it."""
        sql = (
            "SELECT tag, COUNT(*) FROM item_tags JOIN items ON items.id = item WHERE trashed IS NULL GROUP BY tag "
            "ORDER BY COUNT(*) DESC, tag"
        )
        return {str(tag): int(count) for tag, count in self.database.read(sql)}

    def _rebuild(self, database: Database) -> None:
        with database.write() as connection:
            for path in sorted(self.entries.glob("*.json")) if self.entries.is_dir() else ():
                try:
                    _index(connection, Item.from_json(json.loads(path.read_text(encoding="utf-8"))))
                except (OSError, ValueError, KeyError, TypeError):
                    continue


def _item(row: sqlite3.Row) -> Item:
    return Item.from_json(json.loads(row["entry"]))


def _index(connection: sqlite3.Connection, item: Item) -> None:
    _drop(connection, item.id)
    added = connection.execute(
        "INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            item.id,
            item.kind,
            item.name,
            item.owner,
            item.added,
            item.num_bytes,
            item.family,
            item.type,
            int(item.favourite),
            item.content,
            item.trashed,
            int(item.missing),
            str(item.path),
            json.dumps(item.to_json(), ensure_ascii=False),
        ),
    )
    connection.executemany("INSERT OR IGNORE INTO item_tags VALUES (?, ?)", [(item.id, tag) for tag in item.tags])
    about = [item.kind, item.family, item.type, item.trigger, item.class_noun, item.path.name, *_texts(item)]
    words = " ".join(str(word) for word in about if word)
    connection.execute(
        "INSERT INTO item_words (rowid, name, words, tags, notes) VALUES (?, ?, ?, ?, ?)",
        (added.lastrowid, item.name, words, " ".join(item.tags), item.notes),
    )


def _texts(item: Item) -> list[str]:
    """What else can be searched: prompts, descriptions."""
    return [str(item.facts[name]) for name in ("prompt", "description", "author", "adapters") if item.facts.get(name)]


def _drop(connection: sqlite3.Connection, item_id: str) -> None:
    connection.execute("DELETE FROM item_words WHERE rowid IN (SELECT rowid FROM items WHERE id = ?)", (item_id,))
    connection.execute("DELETE FROM items WHERE id = ?", (item_id,))


def _where(wanted: ItemFilter) -> tuple[list[str], list[object]]:
    clauses = ["trashed IS NOT NULL" if wanted.in_trash else "trashed IS NULL"]
    values: list[object] = []
    for column in ("kind", "family", "type", "owner", "favourite", "missing"):
        value = getattr(wanted, column)
        if value is not None:
            clauses.append(f"{column} = ?")
            values.append(int(value) if isinstance(value, bool) else value)
    if wanted.owners is not None:
        clauses.append(f"owner IN ({', '.join('?' * len(wanted.owners))})")
        values.extend(wanted.owners)
    for tag in wanted.tags:
        clauses.append("id IN (SELECT item FROM item_tags WHERE tag = ?)")
        values.append(tag)
    words = re.findall(r"\w+", wanted.words)
    if words:
        clauses.append("items.rowid IN (SELECT rowid FROM item_words WHERE item_words MATCH ?)")
        values.append(" ".join(f'"{word}"*' for word in words))
    elif wanted.words.strip():
        clauses.append("0")  # only punctuation: nothing has it
    return clauses, values


def _cursor(text: str) -> tuple[float, str]:
    added, _, item_id = text.partition(":")
    try:
        return float(added), item_id
    except ValueError:
        raise UserError(f"{text[:40]!r} is no place in a list; take the one that the page before named.") from None
