"""A queue of many users in front of some GPUs, simulated event by event: arrivals, groups, caches of adapters.

Users ask for pictures at random moments of the busiest hour (a Poisson process); each request is for some pictures with one
adapter. A GPU that is free takes what has waited longest in its queue, up to so many rows, whatever their adapters, as the
batch and the worker do (`studio.pipelines.mixed_batch`). An adapter that is not in the GPU's memory comes from the machine's, or
else from its disk. Requests go to the less loaded of two GPUs that the adapter's hash names, so that an adapter is in few places.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Load:
    """What users do.

    Attributes:
        pictures_per_day: of one user. pictures_per_request: on average (geometric).
        peak_share: of a day's requests that fall into its busiest hour.
        adapters_per_user: of a user's own. shared_adapters: that everybody may use; shared_share: requests that use one.
        zipf: how unequally adapters are used: the n-th most used one n^-zipf as often as the first.
        trainings_per_day: of one user.
    """

    users: int = 1000
    pictures_per_day: float = 40.0
    pictures_per_request: float = 4.0
    peak_share: float = 0.15
    adapters_per_user: int = 5
    shared_adapters: int = 200
    shared_share: float = 0.3
    zipf: float = 1.0
    trainings_per_day: float = 0.1

    @property
    def requests_per_second(self) -> float:
        """In the busiest hour."""
        return self.users * self.pictures_per_day / self.pictures_per_request * self.peak_share / 3600.0

    @property
    def trainings_per_second(self) -> float:
        """The same for trainings."""
        return self.users * self.trainings_per_day * self.peak_share / 3600.0


@dataclass(frozen=True, kw_only=True)
class Service:
    """How long things take. `source`: where the figures come from.

    Attributes:
        seconds_fixed, seconds_per_row: of a forward of all steps with r rows: fixed + r · per row, decoding with it.
        adapter_bytes: of one. device_bytes_per_second, disk_bytes_per_second: from memory to the GPU, from disk to memory.
        training_seconds: of one training.
    """

    source: str
    seconds_fixed: float
    seconds_per_row: float
    adapter_bytes: float
    device_bytes_per_second: float
    disk_bytes_per_second: float
    training_seconds: float


@dataclass(frozen=True, kw_only=True)
class Plant:
    """What there is. `cached_on_device`, `cached_in_memory`: adapters that fit, per GPU and per machine."""

    gpus: int
    gpus_per_machine: int = 4
    cached_on_device: int = 32
    cached_in_memory: int = 1000
    max_rows: int = 8


@dataclass(frozen=True)
class Result:
    """What users saw: seconds from asking to the last picture, at the median and at 95 % of the requests.

    Attributes:
        busy: share of the time that GPUs worked. device_hits, memory_hits: shares of adapter uses found there.
        rows: pictures in a forward on average.
    """

    median_seconds: float
    p95_seconds: float
    mean_wait_seconds: float
    busy: float
    device_hits: float
    memory_hits: float
    rows: float
    requests: int


@dataclass
class _Request:
    arrival: float
    adapter: int
    left: int
    running: int = 0
    started: float | None = None


@dataclass
class _Gpu:
    device: OrderedDict[int, None] = field(default_factory=OrderedDict)
    queue: deque[_Request] = field(default_factory=deque)
    is_free: bool = True
    backlog: int = 0
    seconds: float = 0.0


class _Run:
    """One simulation: the state of every queue and cache, and what was counted after the warm-up."""

    def __init__(self, load: Load, service: Service, plant: Plant, seconds: float, seed: int) -> None:
        self.load, self.service, self.plant = load, service, plant
        self.begins, self.ends = seconds / 2, seconds
        self.chance = random.Random(seed)
        self.gpus = [_Gpu() for _ in range(plant.gpus)]
        machines = -(-plant.gpus // plant.gpus_per_machine)
        self.memories: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(machines)]
        self.own = _weights(load.adapters_per_user, load.zipf)
        self.shared = _weights(load.shared_adapters, load.zipf)
        self.counts = {"uses": 0, "device": 0, "memory": 0, "rows": 0, "groups": 0}
        self.latencies: list[float] = []
        self.waits: list[float] = []
        self._events: list[tuple[float, int, int, list[tuple[_Request, int]]]] = []
        self._order = 0

    def run(self) -> None:
        """All requests until the end, and what is left of them then."""
        self._push(self._pause(), -1, [])
        while self._events:
            now, _, number, rows = heapq.heappop(self._events)
            if number < 0:
                if now < self.ends:
                    self._push(now + self._pause(), -1, [])
                self._ask(now)
            else:
                self._done(now, number, rows)

    def _pause(self) -> float:
        return self.chance.expovariate(self.load.requests_per_second)

    def _push(self, moment: float, number: int, rows: list[tuple[_Request, int]]) -> None:
        """A GPU's group is done at `moment`; number -1: somebody asks."""
        self._order += 1
        heapq.heappush(self._events, (moment, self._order, number, rows))

    def _ask(self, now: float) -> None:
        adapter = self._adapter()
        number = _place(self.gpus, adapter)
        request = _Request(now, adapter, _geometric(self.chance, self.load.pictures_per_request))
        self.gpus[number].queue.append(request)
        self.gpus[number].backlog += request.left
        if self.gpus[number].is_free:
            self._begin(now, number)

    def _adapter(self) -> int:
        load = self.load
        if load.shared_adapters and self.chance.random() < load.shared_share:
            return self.chance.choices(range(load.shared_adapters), cum_weights=self.shared)[0]
        user = self.chance.randrange(load.users)
        which = self.chance.choices(range(len(self.own)), cum_weights=self.own)[0]
        return load.shared_adapters + user * load.adapters_per_user + which

    def _begin(self, now: float, number: int) -> None:
        """Take what waited longest, up to so many rows, and work on it."""
        gpu = self.gpus[number]
        rows: list[tuple[_Request, int]] = []
        free = self.plant.max_rows
        while gpu.queue and free:
            request = gpu.queue[0]
            taken = min(free, request.left)
            request.left -= taken
            request.running += taken
            request.started = now if request.started is None else request.started
            free -= taken
            rows.append((request, taken))
            if request.left == 0:
                gpu.queue.popleft()
        gpu.is_free = not rows
        if rows:
            count = self.plant.max_rows - free
            took = self.service.seconds_fixed + count * self.service.seconds_per_row
            took += sum(self._load(number, adapter, now) for adapter in dict.fromkeys(request.adapter for request, _ in rows))
            if self.begins <= now < self.ends:
                gpu.seconds += took
                self.counts["rows"] += count
                self.counts["groups"] += 1
            self._push(now + took, number, rows)

    def _load(self, number: int, adapter: int, now: float) -> float:
        """What it takes until the adapter is on the GPU; both caches keep what was used last."""
        device, memory = self.gpus[number].device, self.memories[number // self.plant.gpus_per_machine]
        counted = 1 if self.begins <= now < self.ends else 0
        self.counts["uses"] += counted
        took = 0.0
        if adapter in device:
            self.counts["device"] += counted
        else:
            took = self.service.adapter_bytes / self.service.device_bytes_per_second
            if adapter in memory:
                self.counts["memory"] += counted
            else:
                took += self.service.adapter_bytes / self.service.disk_bytes_per_second
        for cache, size in ((device, self.plant.cached_on_device), (memory, self.plant.cached_in_memory)):
            cache[adapter] = None
            cache.move_to_end(adapter)
            while len(cache) > size:
                cache.popitem(last=False)
        return took

    def _done(self, now: float, number: int, rows: list[tuple[_Request, int]]) -> None:
        for request, taken in rows:
            request.running -= taken
            self.gpus[number].backlog -= taken
            if request.left == 0 and request.running == 0 and self.begins <= request.arrival < self.ends:
                self.latencies.append(now - request.arrival)
                self.waits.append((request.started or now) - request.arrival)
        self._begin(now, number)


def simulate(load: Load, service: Service, plant: Plant, *, seconds: float = 14_400.0, seed: int = 0) -> Result:
    """Run the busiest hour's load for `seconds`; the first half fills queues and caches and is not counted."""
    run = _Run(load, service, plant, seconds, seed)
    run.run()
    latencies, counts = sorted(run.latencies), run.counts
    if not latencies:
        raise ValueError("No request came in so short a time.")
    uses = max(1, counts["uses"])
    return Result(
        median_seconds=latencies[len(latencies) // 2],
        p95_seconds=latencies[int(len(latencies) * 0.95)],
        mean_wait_seconds=sum(run.waits) / len(run.waits),
        busy=sum(gpu.seconds for gpu in run.gpus) / (run.ends - run.begins) / plant.gpus,
        device_hits=counts["device"] / uses,
        memory_hits=(counts["device"] + counts["memory"]) / uses,
        rows=counts["rows"] / max(1, counts["groups"]),
        requests=len(latencies),
    )


def simulate_trainings(load: Load, service: Service, gpus: int, *, seconds: float = 86_400.0, seed: int = 0) -> float:
    """Seconds that 95 % of the trainings wait at most before they begin, with so many GPUs that do nothing else."""
    chance = random.Random(seed)
    free = [0.0] * gpus
    waits = []
    now = 0.0
    while now < seconds:
        now += chance.expovariate(load.trainings_per_second)
        begun = max(now, free[0])
        heapq.heapreplace(free, begun + service.training_seconds)
        waits.append(begun - now)
    waits.sort()
    return waits[int(len(waits) * 0.95)]


def _place(gpus: list[_Gpu], adapter: int) -> int:
    """The less loaded of the two GPUs that an adapter's number names."""
    chance = random.Random(adapter)
    pair = chance.sample(range(len(gpus)), 2) if len(gpus) > 1 else [0]
    return min(pair, key=lambda number: gpus[number].backlog)


def _weights(count: int, zipf: float) -> list[float]:
    """Running sums of n^-zipf."""
    total, found = 0.0, []
    for number in range(1, count + 1):
        total += number**-zipf
        found.append(total)
    return found


def _geometric(chance: random.Random, mean: float) -> int:
    count = 1
    while mean > 1.0 and chance.random() > 1.0 / mean:
        count += 1
    return count
