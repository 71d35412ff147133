"""What happens to machines: damaged databases, full and read-only disks, network folders, clocks, upgrades."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from studio.jobs import changes, claims
from studio.jobs.claims import Claimant
from studio.jobs.folder import JobFolder
from studio.jobs.job import State
from studio.jobs.specs import GenerateSpec, Submit
from studio.jobs.store import JobFilter, JobStore
from studio.pipelines import files
from studio.pipelines.errors import OutputError, StudioError, UserError
from studio.storage.database import Database
from studio.storage.home import Home
from studio.storage.network import Mount, refuse_network_folder

ROOT = Path(__file__).resolve().parents[2]
SPEC = GenerateSpec(prompts=("a cat",), seed=1)


def reopened(store: JobStore) -> JobStore:
    store.close()
    return JobStore(store.home)


def some_jobs(store: JobStore) -> list[str]:
    """One in each state, with an order of its own."""
    jobs = [store.submit(SPEC, Submit(priority=number % 2, title=f"job {number}")) for number in range(8)]
    worker = Claimant.here("worker")
    for outcome in ("succeeded", "failed"):
        job = claims.claim(store, worker, ["generate"], "cpu")
        assert job is not None
        claims.finish(store, job, outcome, error="why" if outcome == "failed" else "")
    running = claims.claim(store, worker, ["generate"], "cpu")
    assert running is not None
    claims.set_process(store, running, 12345, 1.0)
    waiting = [job.id for job in store.queue()]
    changes.cancel(store, waiting[0])
    changes.hold(store, waiting[1])
    changes.move(store, waiting[4], before=waiting[2])
    last = store.submit(SPEC, Submit(needs=(jobs[0].id,), owner="somebody", key="once", max_attempts=1))
    return [*(job.id for job in jobs), last.id]


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "gone", "page"])
def test_a_damaged_table_is_made_anew_from_the_folders(store: JobStore, damage: str):
    some_jobs(store)
    before, order = store.list(), [job.id for job in store.queue()]
    store.close()
    path = store.home.jobs_database
    content = path.read_bytes()
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    wrong = {
        "garbage": os.urandom(len(content)),
        "empty": b"not a database at all, not at all",
        "cut": content[: len(content) // 2 + 100],
        "page": content[:4096] + b"\xff" * 4096 + content[8192:],
    }
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(wrong[damage])
    again = JobStore(store.home)
    try:
        assert [job.id for job in again.queue()] == order
        for job in before:
            found = again.get(job.id)
            for name in (
                "state",
                "held",
                "priority",
                "position",
                "attempt",
                "owner",
                "key",
                "title",
                "error",
                "pid",
                "worker",
                "max_attempts",
            ):
                assert getattr(found, name) == getattr(job, name), (job.id, name)
        assert again.needs_of(before[0].id) == store_needs(before[0].id, again)
        if damage == "gone":
            assert again.database.set_aside is None
        else:
            assert again.database.set_aside is not None
            assert again.database.set_aside.read_bytes() == wrong[damage]
    finally:
        again.close()


def store_needs(job_id: str, store: JobStore) -> list[str]:
    return list(store.folder(job_id).read_job().submit.needs)


def test_two_processes_that_find_it_damaged_make_it_anew_once(store: JobStore):
    ids = some_jobs(store)
    store.close()
    store.home.jobs_database.write_bytes(b"garbage" * 1000)
    code = "import sys; from studio.service import *; print(len(Studio(sys.argv[1]).jobs()))"
    command = [sys.executable, "-c", code, str(store.home.root)]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in both] == [str(len(ids))] * 2
    assert len(list(store.home.root.glob("*.damaged-*"))) == 1


def test_a_worker_goes_over_to_the_new_table(store: JobStore):
    from studio.jobs.worker import Worker

    worker = Worker(store, ["cpu"])
    job = store.submit(SPEC)
    claimed = claims.claim(store, worker.claimant, ["generate"], "cpu")
    assert claimed is not None
    claims.set_process(store, claimed, 1, 1.0)
    moved = store.home.jobs_database.with_name("elsewhere")
    store.home.jobs_database.rename(moved)
    other = JobStore(store.home)
    assert store.database.was_replaced()
    worker.sweep()
    ended = claims.finish(store, claimed, "succeeded")
    assert ended is not None
    assert other.get(job.id).state == State.SUCCEEDED
    other.close()


def test_a_job_whose_row_was_not_written_any_more_is_brought_in(store: JobStore):
    from studio.jobs.worker import clean_up

    first = store.submit(SPEC)
    with store.database.write() as connection:
        connection.execute("DELETE FROM jobs")
    clean_up(store)
    assert store.list() == [], "a hand-in may be on its way"
    os.utime(store.folder(first.id).path, (1.0, 1.0))
    half_made = store.home.jobs / "260101-000000-aaaaaa"
    half_made.mkdir()
    os.utime(half_made, (1.0, 1.0))
    clean_up(store)
    assert [job.id for job in store.list()] == [first.id]
    assert not half_made.exists()


def test_a_full_disk_is_one_sentence(store: JobStore, monkeypatch: pytest.MonkeyPatch):
    known = store.submit(SPEC)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot be written: the disk is full; free some space") as caught:
        store.submit(SPEC)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert [job.id for job in store.list()] == [known.id]
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="the disk is full"):
        store.folder(known.id).add_event("message", text="hello")


def test_a_full_database_is_one_sentence(store: JobStore):
    pages = store.database.read("PRAGMA page_count")[0][0]
    store.database._connection().execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for _ in range(200):
            store.submit(SPEC, Submit(title="x" * 400))

    with pytest.raises(OutputError, match="the disk is full; free some space or choose another STUDIO_HOME"):
        fill()
    assert {path.name for path in store.home.jobs.iterdir()} == {job.id for job in store.list(limit=1000)}


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/sys/fs/binfmt_misc").parent.exists(), reason="needs a read-only place")
def test_a_read_only_folder_is_one_sentence(tmp_path: Path):
    """/proc takes no files from anybody, root included."""
    with pytest.raises(OutputError, match="cannot be written"):
        JobStore(Home(Path("/proc/studio")))


def test_a_read_only_database_is_one_sentence(store: JobStore):
    store.submit(SPEC)
    store.database._connection().execute("PRAGMA query_only = 1")
    with pytest.raises(OutputError, match="no permission, or the disk is read-only; choose another STUDIO_HOME"):
        store.insert(store.folder(store.list()[0].id).read_job())


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
def test_a_network_folder_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    mounts = [Mount("/", "ext4"), Mount(str(tmp_path), kind), Mount("/elsewhere", "nfs4")]
    with pytest.raises(OutputError, match=rf"on a network folder \({kind}\).*Set STUDIO_HOME to a folder on a disk"):
        refuse_network_folder(tmp_path / "home", mounts)
    refuse_network_folder(Path("/"), mounts)
    monkeypatch.setattr("studio.storage.network._system_mounts", lambda: mounts)
    with pytest.raises(OutputError, match="network folder"):
        JobStore(Home(tmp_path / "home"))
    refuse_network_folder(tmp_path, [*mounts, Mount(str(tmp_path), "ext4")])


def test_a_database_in_use_is_one_sentence(store: JobStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("studio.storage.database.BUSY_SECONDS", 0.2)
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        other = sqlite3.connect(store.home.jobs_database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        held.set()
        let_go.wait()
        other.close()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        second = JobStore(store.home)
        with pytest.raises(StudioError, match="in use by another process"):
            second.submit(SPEC)
        second.close()
    finally:
        let_go.set()
        thread.join()


def test_migrations_are_numbered_and_backed_up(tmp_path: Path):
    path = tmp_path / "a.sqlite3"
    first = Database(path, ["CREATE TABLE one (x)"])
    with first.write() as connection:
        connection.execute("INSERT INTO one VALUES (7)")
    first.close()
    second = Database(path, ["CREATE TABLE one (x)", "ALTER TABLE one ADD COLUMN y; CREATE TABLE two (z)"])
    assert [tuple(row) for row in second.read("SELECT x, y FROM one")] == [(7, None)]
    second.close()
    backup = sqlite3.connect(tmp_path / "a.sqlite3.v1.backup")
    assert backup.execute("SELECT * FROM one").fetchall() == [(7,)]
    assert backup.execute("PRAGMA user_version").fetchone() == (1,)
    backup.close()
    with pytest.raises(UserError, match="newer version of the studio"):
        Database(path, ["CREATE TABLE one (x)"])


def test_a_migration_that_is_interrupted_leaves_the_version_before(tmp_path: Path):
    path = tmp_path / "a.sqlite3"
    Database(path, ["CREATE TABLE one (x)"]).close()
    with pytest.raises(sqlite3.OperationalError):
        Database(path, ["CREATE TABLE one (x)", "CREATE TABLE two (y); CREATE TABLE one (x)"])
    again = Database(path, ["CREATE TABLE one (x)"])
    assert [row[0] for row in again.read("SELECT name FROM sqlite_master WHERE type = 'table'")] == ["one"]
    again.close()


def test_a_clock_that_goes_backwards_takes_no_job_from_the_living(store: JobStore, monkeypatch: pytest.MonkeyPatch):
    store.submit(SPEC)
    worker = Claimant.here("worker")
    job = claims.claim(store, worker, ["generate"], "cpu")
    assert job is not None
    for hours in (-5, 5):
        real = __import__("time").time()
        monkeypatch.setattr("studio.jobs.claims.time.time", lambda hours=hours, real=real: real + hours * 3600)
        assert claims.orphans(store, Claimant.here("other"), {"worker"}) == []
        assert claims.renew(store, job) == State.RUNNING
    assert claims.orphans(store, Claimant.here("other"), set()) != []


def test_half_a_line_at_the_end_of_the_events_hides_nothing(tmp_path: Path):
    folder = JobFolder(tmp_path)
    folder.add_event("message", text="one")
    with folder.events_jsonl.open("ab") as stream:
        stream.write(b'{"time": 1, "kind": "mess')
    assert [event.data["text"] for event in folder.events()] == ["one"]
    folder.add_event("message", text="two")
    assert [(event.number, event.data["text"]) for event in folder.events()] == [(1, "one"), (3, "two")]


def test_a_job_whose_folder_is_damaged_does_not_stand_in_the_way(store: JobStore):
    bad, good = store.submit(SPEC), store.submit(SPEC)
    store.folder(bad.id).job_json.write_text("{")
    with pytest.raises(StudioError, match="cannot be read"):
        store.folder(bad.id).read_job()
    store.close()
    store.home.jobs_database.unlink()
    again = JobStore(store.home)
    assert [job.id for job in again.list(JobFilter())] == [good.id]
    again.close()
