"""The job table's schema, step by step. A number is never changed once it was released: a new one is added."""

from __future__ import annotations

_FIRST = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    owner TEXT NOT NULL,
    title TEXT NOT NULL,
    parent TEXT,
    state TEXT NOT NULL CHECK (state IN
        ('queued', 'running', 'canceling', 'succeeded', 'failed', 'canceled', 'interrupted')),
    held INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    position REAL NOT NULL,
    attempt INTEGER NOT NULL,
    max_attempts INTEGER NOT NULL,
    device TEXT,
    runs_on TEXT,
    time_limit_seconds REAL,
    created REAL NOT NULL,
    started REAL,
    finished REAL,
    heartbeat REAL,
    lease_until REAL,
    progress REAL NOT NULL,
    message TEXT NOT NULL,
    error TEXT NOT NULL,
    worker TEXT,
    host TEXT,
    pid INTEGER,
    pid_started REAL,
    affinity TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_waiting ON jobs (state, held, priority DESC, position);
CREATE INDEX jobs_position ON jobs (position);
CREATE TABLE needs (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    needed TEXT NOT NULL,
    PRIMARY KEY (job, needed)
) STRICT, WITHOUT ROWID;
CREATE INDEX needs_needed ON needs (needed);
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID
"""

_KEYS = """
ALTER TABLE jobs ADD COLUMN key TEXT;
CREATE UNIQUE INDEX jobs_key ON jobs (owner, key) WHERE key IS NOT NULL;
CREATE INDEX jobs_parent ON jobs (parent) WHERE parent IS NOT NULL
"""

_WORKERS = """
CREATE TABLE workers (
    id TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    pid_started REAL NOT NULL,
    devices TEXT NOT NULL,
    started REAL NOT NULL,
    heartbeat REAL NOT NULL
) STRICT, WITHOUT ROWID
"""

MIGRATIONS = (_FIRST, _KEYS, _WORKERS)
"""Script n brings the schema from version n to n + 1."""
