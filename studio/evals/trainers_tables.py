"""The tables of `studio eval trainers`: what was learned, at what cost, and how much a method minds its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import pstdev

from studio.evals.concept import ConceptVerdict, verdict
from studio.evals.records import Record
from studio.evals.statistics import Interval, bootstrap_interval, paired_difference, share_interval
from studio.evals.tables import Cell, Table
from studio.evals.trainers_plan import DEFAULT

SMALLEST_SPAN = 0.05
"""Ceiling minus floor from which a share of the way between them means something."""


def pictures_of(records: Sequence[Record], method: str, kind: str, variant: str = DEFAULT) -> list[Record]:
    """Records of a method's pictures of the individuals or of the styles."""
    return [r for r in records if r["method"] == method and r["kind"] == kind and r["variant"] == variant]


def trainings_of(records: Sequence[Record], method: str, variant: str = DEFAULT) -> list[Record]:
    """Records of a method's trainings."""
    return pictures_of(records, method, "training", variant)


def judged(records: Sequence[Record], method: str, kind: str, variant: str = DEFAULT) -> ConceptVerdict | None:
    """The verdict of `studio.evals.concept` on a method, over the subjects it was judged on.

    None without pictures, or where floor and ceiling are too near to each other.
    """
    ours = pictures_of(records, method, kind, variant)
    concepts = {record["concept"] for record in ours}
    references = [r for r in records if r["method"] in ("base", "truth") and r["kind"] == kind and r["concept"] in concepts]

    def mean(arm: str) -> float:
        values = [float(r["identity"]) for r in references if r["arm"] == arm]
        return sum(values) / max(1, len(values))

    if not ours or mean("truth") - mean("base") < SMALLEST_SPAN:
        return None
    return verdict([*references, *({**record, "arm": "ours"} for record in ours)])


def fidelity_change(records: Sequence[Record], method: str, kind: str, variant: str = DEFAULT) -> Interval:
    """Prompt fidelity minus the base's on the same prompt and picture seed."""
    base = {_cell(record): float(record["fidelity"]) for record in pictures_of(records, "base", kind)}
    ours = pictures_of(records, method, kind, variant)
    pairs = [(float(r["fidelity"]), base[_cell(r)], (r["concept"], r["prompt"])) for r in ours]
    return paired_difference([p[0] for p in pairs], [p[1] for p in pairs], [p[2] for p in pairs])


def difference(records: Sequence[Record], first: str, second: str, kind: str, key: str) -> Interval:
    """`key` of one method minus that of another, over what both drew: subject, training seed, prompt and picture seed."""
    theirs = {(*_cell(r), r["training_seed"]): float(r[key]) for r in pictures_of(records, second, kind)}
    ours = {(*_cell(r), r["training_seed"]): float(r[key]) for r in pictures_of(records, first, kind)}
    both = [cell for cell in ours if cell in theirs]
    return paired_difference([ours[c] for c in both], [theirs[c] for c in both], [c[:2] for c in both])


def quality_table(records: Sequence[Record], methods: Sequence[str], kind: str) -> Table:
    """One row per method, with the base and the truth around them: what the pictures show."""
    rows = []
    for method in ("base", *methods, "truth"):
        pictures = pictures_of(records, method, kind)
        if not pictures:
            continue
        found = judged(records, method, kind) if method in methods else None
        rows.append(
            (
                method,
                len({(r["concept"], r["training_seed"]) for r in pictures}),
                len(pictures),
                _mean(pictures, "identity"),
                None if found is None else found.identity_gain,
                share_interval([bool(r["right"]) for r in pictures]),
                _mean(pictures, "fidelity"),
                fidelity_change(records, method, kind) if method in methods else None,
                share_interval([bool(r["content"]) for r in pictures]),
                _mean([r for r in pictures if r["diversity"] is not None], "diversity"),
                None if found is None else ("yes" if found.learned else "no"),
            )
        )
    thing = "identity" if kind == "individual" else "style"
    right = "right one of 20" if kind == "individual" else "right style"
    columns = (
        "method",
        "n",
        "pictures",
        thing,
        f"{thing} gain",
        right,
        "fidelity",
        "against base",
        "content",
        "diversity",
        "learned",
    )
    return Table(
        title="Individuals" if kind == "individual" else "Styles",
        columns=columns,
        rows=tuple(rows),
        notes=(
            f"n: trainings. {thing} gain = (method - base) / (truth - base), bar .6. {right}: bar .6. against base: bar -.05",
            "content: the judge sees the class that the prompt names. diversity: 1 - cosine between seeds of a prompt",
            "95 % intervals: bootstrap over prompts of subjects; Wilson for shares",
        ),
    )


def cost_table(records: Sequence[Record], methods: Sequence[str]) -> Table:
    """One row per method: parameters, bytes, seconds, memory; means over its trainings."""
    rows = []
    for method in methods:
        trainings = trainings_of(records, method)
        if not trainings:
            continue
        rows.append(
            (
                method,
                len(trainings),
                _whole(trainings, "num_parameters"),
                _of(trainings, lambda r: float(r["file_bytes"]) / 1024),
                _of(trainings, lambda r: float(r["step_cpu_seconds"])),
                _of(trainings, lambda r: float(r["peak_bytes"]) / 2**20),
                _of(trainings, lambda r: float(r["chosen_step"])),
                _of(trainings, lambda r: float(r["seconds_to_chosen"])),
                _of(trainings, lambda r: float(r["cpu_seconds"])),
            )
        )
    columns = ("method", "n", "parameters", "file KiB", "CPU s/step", "peak MiB", "chosen step", "CPU s to it", "CPU s in all")
    notes = (
        "each training is a process of its own. peak: the process's, base model included (on a GPU: its memory)",
        "CPU s/step: median over the steps of a training. to it: steps alone; in all: with samples, scores and checkpoints",
    )
    return Table(title="Cost", columns=columns, rows=tuple(rows), notes=notes)


def grid_table(records: Sequence[Record], methods: Sequence[str]) -> Table | None:
    """Learning rate × size: identity gain on the grid's individuals, and its spread per method; None without a grid."""
    variants = {str(r["variant"]) for r in records if r["variant"] != DEFAULT}
    if not variants:
        return None
    on_grid = {r["concept"] for r in records if r["variant"] != DEFAULT}
    chosen = [r for r in records if r["concept"] in on_grid]
    rows: list[tuple[Cell, ...]] = []
    for method in methods:
        gains = []
        for variant in (DEFAULT, *sorted(variants)):
            found = judged(chosen, method, "individual", variant)
            if found is not None:
                gains.append(found.identity_gain.estimate)
                change = fidelity_change(chosen, method, "individual", variant)
                rows.append((method, variant, found.identity_gain, change, "yes" if found.learned else "no"))
        if len(gains) > 1:
            rows.append((method, f"spread of {len(gains)}", pstdev(gains), None, None))
    return Table(
        title=f"How much a method minds its settings ({len(on_grid)} individuals)",
        columns=("method", "setting", "identity gain", "fidelity against base", "learned"),
        rows=tuple(rows),
        notes=("lr x: factor on the method's own learning rate. spread: standard deviation over the grid; smaller minds less",),
    )


def _cell(record: Record) -> tuple[object, object, object]:
    return record["concept"], record["prompt"], record["seed"]


def _mean(records: Sequence[Record], key: str) -> Interval:
    return bootstrap_interval([float(r[key]) for r in records], [(r["concept"], r["prompt"]) for r in records])


def _of(trainings: Sequence[Record], value: Callable[[Record], float]) -> Cell:
    """The mean with its interval; the value itself of a single training."""
    values = [value(training) for training in trainings]
    return values[0] if len(values) == 1 else bootstrap_interval(values)


def _whole(trainings: Sequence[Record], key: str) -> Cell:
    """The number, where all trainings share it; the mean with its interval otherwise."""
    values = {int(training[key]) for training in trainings}
    return values.pop() if len(values) == 1 else _of(trainings, lambda r: float(r[key]))
