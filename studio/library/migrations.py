"""The catalogue's schema. It can be made anew from the entries' files, so it holds nothing else."""

from __future__ import annotations

_FIRST = """
CREATE TABLE items (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    added REAL NOT NULL,
    num_bytes INTEGER NOT NULL,
    family TEXT,
    type TEXT,
    favourite INTEGER NOT NULL,
    content TEXT NOT NULL,
    trashed REAL,
    missing INTEGER NOT NULL,
    path TEXT NOT NULL,
    entry TEXT NOT NULL
) STRICT;
CREATE INDEX items_order ON items (trashed, kind, added DESC);
CREATE INDEX items_content ON items (content);
CREATE INDEX items_name ON items (kind, name);
CREATE INDEX items_path ON items (path);
CREATE TABLE item_tags (
    item TEXT NOT NULL REFERENCES items (id) ON DELETE CASCADE,
    tag TEXT NOT NULL COLLATE NOCASE,
    PRIMARY KEY (item, tag)
) STRICT, WITHOUT ROWID;
CREATE INDEX item_tags_tag ON item_tags (tag);
CREATE VIRTUAL TABLE item_words USING fts5 (
    name, words, tags, notes, tokenize = "unicode61 remove_diacritics 2", prefix = '2 3'
)
"""

MIGRATIONS = (_FIRST,)
"""Script n brings the schema from version n to n + 1."""
