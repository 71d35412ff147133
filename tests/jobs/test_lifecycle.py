"""What becomes of a job: who goes first, how it ends, and what a change of mind does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from studio.jobs import changes, claims
from studio.jobs.attending import Running, shorten
from studio.jobs.claims import Claimant
from studio.jobs.job import Job, State
from studio.jobs.specs import GenerateSpec, Submit
from studio.jobs.store import JobStore
from studio.jobs.work.grouping import Grouper
from studio.jobs.worker import Worker
from studio.jobs.workers import living_workers, register
from studio.pipelines.errors import UserError
from studio.storage.home import Home

SPEC = GenerateSpec(prompts=("a cat",), seed=1)
WORKER = Claimant.here("worker")


@pytest.fixture
def store(tmp_path: Path):
    opened = JobStore(Home(tmp_path / "home"))
    yield opened
    opened.close()


def claimed(store: JobStore, **more: object) -> Job | None:
    return claims.claim(store, WORKER, ["generate"], "cpu", **more)  # type: ignore[arg-type]


def surely(job: Job | None) -> Job:
    assert job is not None
    return job


def test_who_goes_first(store: JobStore):
    names = {
        store.submit(SPEC, submit).id: name
        for name, submit in {
            "first": Submit(owner="a"),
            "second": Submit(owner="a"),
            "other's": Submit(owner="b"),
            "important": Submit(owner="a", priority=1),
            "elsewhere": Submit(device="cuda:0", priority=9),
            "held": Submit(held=True, priority=9),
        }.items()
    }
    order = [names[surely(claimed(store, busy_owners=busy)).id] for busy in ([], ["a"], ["a", "b"], [])]
    assert order == ["important", "other's", "first", "second"]
    assert claimed(store) is None
    assert names[surely(claims.claim(store, WORKER, ["generate"], "cuda:0")).id] == "elsewhere"
    assert claims.claim(store, WORKER, ["train"], "cpu") is None


def test_a_paused_queue_begins_nothing_and_stays_paused(store: JobStore):
    store.submit(SPEC)
    store.pause(True)
    assert claimed(store) is None
    again = JobStore(store.home)
    assert again.is_paused
    again.pause(False)
    again.close()
    assert claimed(store) is not None


def test_needs_are_waited_for_and_fall_with_what_they_need(store: JobStore):
    first = store.submit(SPEC)
    second = store.submit(SPEC, Submit(needs=(first.id,), priority=5))
    third = store.submit(SPEC, Submit(needs=(second.id,)))
    job = surely(claimed(store))
    assert job.id == first.id
    assert claimed(store) is None
    claims.finish(store, job, "succeeded")
    job = surely(claimed(store))
    assert job.id == second.id
    running = Running.of(store, job)
    running.folder.write_result(job.attempt, "failed", error="no adapter")
    assert surely(running.settle(store)).state == State.FAILED
    assert store.get(third.id).state == State.CANCELED
    assert second.id in store.get(third.id).message


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_a_process_that_dies_is_begun_again_and_at_last_fails_with_its_log(store: JobStore, max_attempts: int):
    store.submit(SPEC, Submit(max_attempts=max_attempts))
    for number in range(1, max_attempts + 1):
        job = surely(claimed(store))
        assert job.attempt == number
        running = Running.of(store, job)
        running.folder.add_to_log("first line\nSegmentation fault (core dumped)")
        ended = surely(running.settle(store))
    assert ended.state == State.FAILED
    assert "Segmentation fault" in ended.error
    assert ("once" if max_attempts == 1 else f"{max_attempts} times") in ended.error
    assert changes.retry(store, ended.id).state == State.QUEUED
    assert surely(claimed(store)).attempt == 1


def test_a_result_of_an_earlier_attempt_is_not_taken_for_this_ones(store: JobStore):
    store.submit(SPEC)
    job = surely(claimed(store))
    running = Running.of(store, job)
    running.folder.write_result(job.attempt, "failed", error="the disk was full")
    running.settle(store)
    changes.retry(store, job.id)
    again = surely(claimed(store))
    assert again.attempt == job.attempt
    running = Running.of(store, again)
    running.folder.forget_result()  # as a lane does before it begins
    assert surely(running.settle(store)).state == State.QUEUED


def test_pausing_a_running_job_is_no_failed_attempt(store: JobStore):
    store.submit(SPEC, Submit(max_attempts=1))
    for _ in range(4):
        job = surely(claimed(store))
        assert job.attempt == 1
        changes.hold(store, job.id)
        running = Running.of(store, job)
        running.attend(store)
        assert running.stop_since is not None
        assert surely(running.settle(store)).state == State.INTERRUPTED
        assert claimed(store) is None
        changes.release(store, job.id)
        assert not running.folder.stop_flag.exists()
    assert store.get(job.id).state == State.QUEUED


def test_a_worker_that_leaves_costs_no_attempt(store: JobStore):
    store.submit(SPEC)
    job = surely(claimed(store))
    back = surely(Running.of(store, job).settle(store, worker_is_leaving=True))
    assert (back.state, back.attempt) == (State.QUEUED, 0)


def test_a_time_limit_stops_and_fails(store: JobStore):
    store.submit(SPEC, Submit(time_limit_seconds=0.01))
    running = Running.of(store, surely(claimed(store)))
    time.sleep(0.02)
    running.attend(store)
    assert running.folder.stop_flag.exists()
    ended = surely(running.settle(store))
    assert ended.state == State.FAILED
    assert "time limit of 0.01 seconds" in ended.error


def test_canceling_while_it_fails_or_dies_is_canceled_and_while_it_succeeds_is_done(store: JobStore):
    for outcome, state in ((None, State.CANCELED), ("failed", State.CANCELED), ("succeeded", State.SUCCEEDED)):
        store.submit(SPEC)
        job = surely(claimed(store))
        assert changes.cancel(store, job.id).state == State.CANCELING
        running = Running.of(store, job)
        if outcome is not None:
            running.folder.write_result(job.attempt, outcome)
        assert surely(running.settle(store)).state == state


def test_a_claim_that_was_lost_changes_nothing(store: JobStore):
    store.submit(SPEC)
    job = surely(claimed(store))
    other = Claimant.here("other")
    taken = surely(claims.adopt(store, other, job))
    assert claims.adopt(store, Claimant.here("third"), job) is None
    assert claims.renew(store, job) is None
    assert claims.finish(store, job, "failed") is None
    assert claims.give_back(store, job) is None
    assert surely(claims.finish(store, taken, "succeeded")).state == State.SUCCEEDED


def test_what_dead_workers_left_is_taken_over(store: JobStore):
    ended, died = store.submit(SPEC), store.submit(SPEC)
    job = surely(claimed(store))
    store.folder(job.id).write_result(job.attempt, "succeeded")
    surely(claimed(store))
    worker = Worker(store, ["cpu"])
    register(store, WORKER.worker, ["cpu"])
    worker.sweep()
    assert store.get(ended.id).state == State.RUNNING, "its worker lives: it is this process"
    with store.database.write() as connection:
        connection.execute("UPDATE workers SET pid_started = 1.0")
    assert living_workers(store) == []
    worker.sweep()
    assert store.get(ended.id).state == State.SUCCEEDED
    assert (store.get(died.id).state, store.get(died.id).attempt) == (State.QUEUED, 1)


def test_one_worker_for_a_device(store: JobStore):
    first, second = Worker(store, ["cpu"]), Worker(store, ["cpu"])
    first._lock_devices()
    with pytest.raises(UserError, match="Another worker has cpu"):
        second._lock_devices()
    first.leave()
    second._lock_devices()
    second.leave()


def test_positions_between_positions_never_run_out(store: JobStore):
    first, second, third = (store.submit(SPEC) for _ in range(3))
    for number in range(120):
        moved = (third, second)[number % 2]
        changes.move(store, moved.id, before=(second, third)[number % 2].id)
        order = [job.id for job in store.queue()]
        assert order.index(moved.id) < order.index((second, third)[number % 2].id)
    assert store.queue()[0].id == first.id


def test_a_log_is_cut_at_its_beginning(tmp_path: Path):
    log = tmp_path / "log.txt"
    log.write_bytes(b"".join(b"line %d\n" % number for number in range(1000)))
    with log.open("ab") as writer:
        shorten(log, 4096)
        writer.write(b"the last line\n")
    text = log.read_text()
    assert log.stat().st_size < 1000
    assert text.startswith("(the beginning was cut off)\nline ")
    assert text.endswith("line 999\nthe last line\n")


class Task:
    """As much of a task as the grouper looks at."""

    def __init__(self, owner: str, count: int, *, key: str = "a", batch_size: int = 8, shareable: bool = True) -> None:
        self.owner, self.waiting, self.key, self.shareable = owner, list(range(count)), (key,), shareable
        self.spec = GenerateSpec(prompts=("a",), batch_size=batch_size)
        self.arrived = time.monotonic()


def taken(grouper: Grouper, tasks: list[Task]) -> list[str]:
    group = grouper.next_group(tasks)  # type: ignore[arg-type]
    for pick in group:
        pick.task.waiting.remove(pick.number)
    return [pick.task.owner for pick in group]


def test_one_picture_never_waits_behind_anothers_hundred():
    grouper = Grouper(4)
    many, few = Task("many", 100), Task("few", 2)
    assert taken(grouper, [many]) == ["many"] * 4
    assert taken(grouper, [many, few]) == ["few", "many", "few", "many"]
    assert taken(grouper, [many]) == ["many"] * 4


def test_only_what_fits_together_is_drawn_together():
    tasks = [
        Task("a", 1),
        Task("b", 1, key="other size"),
        Task("c", 3, shareable=False),
        Task("d", 1, batch_size=1),
        Task("e", 1),
    ]
    grouper, groups = Grouper(8), []
    while group := taken(grouper, tasks):
        groups.append(group)
    assert groups == [["a", "e"], ["b"], ["c", "c", "c"], ["d"]]
