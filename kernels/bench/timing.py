"""Times the cases on one device, and says what the machine is like."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from studio.kernels.bench.case import CONTROL, Bar, Case
from studio.kernels.bench.cases import cases
from studio.kernels.bench.interleaved import CONTROL_HIGH, CONTROL_LOW, Session, measure
from studio.kernels.paths import TABLE, device_name, pinned_path

SCHEMA = 1
SHORTEST_SECONDS = 0.02
"""An arm is repeated within a round until it takes this long: clocks are coarse, and schedulers coarser."""


@dataclass(frozen=True)
class Timed:
    """One arm of one case.

    Attributes:
        milliseconds: of the quickest round. ratio: to the reference, median of the rounds; cpu and minimum: of sums and minima.
        reference: whose ratio it is. bar: as "≤ 0.35"; empty for none. verdict: "yes", "no", "–", or "noise".
        control: the control's ratio of the session. error, plain_error: against float64, relative; None if not measured.
        bandwidth: share of a copy's bandwidth, of memory-bound ops.
    """

    op: str
    size: str
    dtype: str
    arm: str
    milliseconds: float
    ratio: float
    cpu: float
    minimum: float
    reference: str
    bar: str
    verdict: str
    control: float
    error: float | None
    plain_error: float | None
    bandwidth: float | None


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were taken on."""
    facts: dict[str, Any] = {
        "device": device_name(device),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "path": pinned_path() or "table",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda
    return facts


def noise(device: torch.device, rounds: int = 15) -> Session:
    """One product against itself: whether this machine can tell ratios apart now."""
    left, right = (torch.randn(1024, 640, device=device) for _ in range(2))

    def arm() -> Tensor:
        return left @ right.t()

    return _session({"base": arm, "base again": arm}, device, rounds, attempts=1)


def time_cases(
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    *,
    rounds: int = 9,
    attempts: int = 3,
    only: str = "",
    on_case: Callable[[str], None] = lambda line: None,
) -> tuple[list[Timed], list[dict[str, Any]]]:
    """All arms of all cases whose op contains `only`, and the raw seconds of every session, also those thrown away."""
    found: list[Timed] = []
    raw: list[dict[str, Any]] = []
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        for case in cases(device, dtype):
            if only not in case.op:
                continue
            sessions: list[Session] = []
            session = _session(case.arms, device, rounds, attempts, sessions.append)
            raw += [{"op": case.op, "size": case.size, "dtype": name, "seconds": dict(each.seconds)} for each in sessions]
            rows = timed_rows(case, name, session, copy_bandwidth(device) if case.moved_bytes else None)
            found += rows
            on_case(f"{case.op}, {case.size}, {name}: " + ", ".join(f"{row.arm} {row.ratio:.3f}" for row in rows))
    return found, raw


def timed_rows(case: Case, dtype: str, session: Session, bandwidth: float | None = None) -> list[Timed]:
    """One row for every arm and every bar."""
    errors = _errors(case)
    bars: dict[str, list[Bar]] = {}
    for bar in case.bars:
        bars.setdefault(bar.arm, []).append(bar)
    rows = []
    for arm in case.arms:
        for bar in bars.get(arm, [Bar(arm, "base")]):
            best = min(session.seconds[arm])
            share = None if bandwidth is None or case.moved_bytes is None else case.moved_bytes / best / bandwidth
            own = errors if arm == "ours" else (None, None)
            rows.append(timed_row(case.op, case.size, dtype, bar, session, own, share))
    return rows


def timed_row(
    op: str,
    size: str,
    dtype: str,
    bar: Bar,
    session: Session,
    errors: tuple[float | None, float | None] = (None, None),
    share: float | None = None,
) -> Timed:
    """The row of one arm of a session, the bar's; see `Timed`."""
    ratio = session.ratio(bar.arm, bar.reference)
    return Timed(
        op, size, dtype, bar.arm, 1e3 * min(session.seconds[bar.arm]), ratio.paired, ratio.cpu, ratio.minimum, bar.reference,
        _in_words(bar), _verdict(bar, ratio.paired, session), session.control.paired, *errors, share,
    )  # fmt: skip


def copy_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes a second that a copy moves, reads and writes together."""
    source = torch.empty(megabytes * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    clock = clock_of(device)
    best = float("inf")
    for _ in range(5):
        start = clock()
        target.copy_(source)
        best = min(best, clock() - start)
    return 2 * source.numel() * 4 / best


def clock_of(device: torch.device) -> Callable[[], float]:
    """Process CPU seconds; on a GPU seconds at which all that was started is done."""
    if device.type != "cuda":
        return time.process_time

    def synchronized() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronized


def write_records(folder: Path, name: str, device: torch.device, rows: Sequence[Timed], raw: Sequence[Mapping[str, Any]]) -> Path:
    """`<name>.json` of a fixed schema, the same for every commit."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"schema": SCHEMA, "machine": machine(device), "rows": [asdict(row) for row in rows], "sessions": list(raw)}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def tune(device: torch.device, dtypes: Sequence[torch.dtype], table: Path, rounds: int = 5) -> dict[str, str]:
    """Time every path of the ops that have several and write the quickest of each size into the table; returns its new lines.

    A path has to win by 3 %, the noise that is allowed, to be taken instead of the fast torch path.
    """
    from studio.kernels.bench.tuning import candidates

    chosen: dict[str, str] = {}
    for dtype in dtypes:
        for key, paths in candidates(device, dtype):
            arms = {"base": paths["torch"], "base again": paths["torch"], **{n: run for n, run in paths.items() if n != "torch"}}
            session = _session(arms, device, rounds, attempts=3)
            if not session.valid:
                continue
            medians = {name: session.ratio("base" if name == "torch" else name, "base").paired for name in paths}
            best = min(medians, key=lambda name: medians[name])
            chosen[key] = best if medians[best] < CONTROL_LOW else "torch"
    known = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {"paths": {}, "machines": {}}
    known["paths"] = dict(sorted((known["paths"] | chosen).items()))
    known["machines"][device_name(device)] = machine(device)
    table.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return chosen


def table_path() -> Path:
    """The committed table of paths."""
    return Path(__file__).parents[1] / TABLE


def _session(
    arms: Mapping[str, Callable[[], Any]],
    device: torch.device,
    rounds: int,
    attempts: int,
    on_session: Callable[[Session], None] | None = None,
) -> Session:
    clock = clock_of(device)
    repeated = {}
    for name, arm in arms.items():
        arm()
        repeated[name] = _repeated(arm, max(1, round(SHORTEST_SECONDS / max(_quickest(arm, clock), 1e-7))))
    repeated[CONTROL[0]] = repeated[CONTROL[1]]  # the same thing, and so the same number of times
    session = measure(
        {name: run for name, (run, _) in repeated.items()},
        CONTROL,
        rounds=rounds,
        attempts=attempts,
        on_session=on_session,
        clock=clock,
    )
    counts = {name: count for name, (_, count) in repeated.items()}
    single = {name: tuple(value / counts[name] for value in values) for name, values in session.seconds.items()}
    return Session(single, session.control)


def _quickest(arm: Callable[[], Any], clock: Callable[[], float], tries: int = 3) -> float:
    best = float("inf")
    for _ in range(tries):
        start = clock()
        arm()
        best = min(best, clock() - start)
    return best


def _repeated(arm: Callable[[], Any], count: int) -> tuple[Callable[[], None], int]:
    def run() -> None:
        for _ in range(count):
            arm()

    return run, count


def _errors(case: Case) -> tuple[float | None, float | None]:
    if case.results is None:
        return None, None
    ours, plain, exact = case.results()
    size = exact.norm()
    return tuple(float((each.double() - exact).norm() / size) for each in (ours, plain))  # type: ignore[return-value]


def _in_words(bar: Bar) -> str:
    if bar.most is not None:
        return f"≤ {bar.most:g}"
    return f"≥ {bar.least:g}" if bar.least is not None else ""


def _verdict(bar: Bar, ratio: float, session: Session) -> str:
    if bar.most is None and bar.least is None:
        return "–"
    if not session.valid:
        return "noise"
    kept = (bar.most is None or ratio <= bar.most) and (bar.least is None or ratio >= bar.least)
    return "yes" if kept else "no"


def geometric_mean(values: Sequence[float]) -> float:
    """Of ratios."""
    return float(torch.tensor(values, dtype=torch.float64).log().mean().exp())


def is_quiet(session: Session) -> bool:
    """Whether the control was near one, and its rounds near each other."""
    pairs = [a / b for a, b in zip(session.seconds[CONTROL[0]], session.seconds[CONTROL[1]], strict=True)]
    middle = median(pairs)
    return CONTROL_LOW <= middle <= CONTROL_HIGH


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
