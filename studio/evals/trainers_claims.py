"""Which of the papers' claims held here: each as a figure with its interval, and a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, pstdev

from studio.evals.concept import ConceptVerdict
from studio.evals.records import Record
from studio.evals.statistics import Interval, share_interval
from studio.evals.tables import Table
from studio.evals.trainers_plan import DEFAULT
from studio.evals.trainers_tables import difference, fidelity_change, judged, pictures_of, trainings_of

HELD, FAILED, OPEN = "held", "did not hold", "cannot be said"
LORA, KRONA, SARA, B_LORA = "dreambooth-lora", "diffusekrona", "sara", "b-lora"
BASE_DRAWS_IT = 0.5
"""Share of pictures in which the base itself draws the class, from which a method can be asked to."""

LEARNED_GAIN, MOST_FIDELITY_LOST, MOST_CONTENT_LOST = 0.6, 0.05, 0.05


@dataclass(frozen=True)
class Claim:
    """A claim and what the records say to it. `figure` is what `verdict` rests on."""

    method: str
    text: str
    figure: Interval | float | str
    verdict: str


def claims(records: Sequence[Record], methods: Sequence[str]) -> list[Claim]:
    """Every claim that the records can speak to; those of methods that were not trained are left out."""
    trained = [method for method in methods if trainings_of(records, method)]
    makers: dict[str, Callable[[Sequence[Record]], Iterator[Claim]]] = {
        LORA: lambda found: _learned(found, LORA),
        KRONA: _krona,
        SARA: _sara,
        B_LORA: _b_lora,
    }
    return [claim for method in trained if method in makers for claim in makers[method](records)]


def claims_table(found: Sequence[Claim]) -> Table:
    """The claims as a table."""
    return Table(
        title="Which claims held here",
        columns=("method", "claim", "measured", "verdict"),
        rows=tuple((claim.method, claim.text, claim.figure, claim.verdict) for claim in found),
        notes=("a claim about a difference is open where the 95 % interval holds both answers; - LoRA: paired, on individuals",),
    )


def above(interval: Interval, bar: float = 0.0) -> str:
    """Whether a figure is above a bar, as far as its interval can tell."""
    if interval.num == 0:
        return OPEN
    return HELD if interval.low > bar else FAILED if interval.high < bar else OPEN


def _learned(records: Sequence[Record], method: str) -> Iterator[Claim]:
    """The bar of the concept evaluation, condition by condition; it is a bar on the estimate, not on the interval."""
    found: ConceptVerdict | None = judged(records, method, "individual")
    if found is None:
        return
    words = (
        ("identity gain is at least .6", found.identity_gain, found.identity_gain.estimate >= LEARNED_GAIN),
        (
            "prompt fidelity is at least the base's - .05",
            fidelity_change(records, method, "individual"),
            found.fidelity["ours"] >= found.fidelity["base"] - MOST_FIDELITY_LOST,
        ),
        ("the right one of 20 is nearest in 60 %", found.right["ours"], found.right["ours"].estimate >= 0.6),
    )
    for text, figure, holds in words:
        yield Claim(method, text, figure, HELD if holds else FAILED)


def _krona(records: Sequence[Record]) -> Iterator[Claim]:
    """arXiv 2402.17412, tables 2 to 4 and section 4.4."""
    yield from _learned(records, KRONA)
    if not trainings_of(records, LORA):
        return
    ratio = _mean_of(records, KRONA, "num_parameters") / _mean_of(records, LORA, "num_parameters")
    yield Claim(KRONA, "fewer parameters than LoRA (paper: .65 of rank 4's)", ratio, HELD if ratio < 1 else FAILED)
    identity = difference(records, KRONA, LORA, "individual", "identity")
    yield Claim(KRONA, "identity above LoRA's", identity, above(identity))
    fidelity = difference(records, KRONA, LORA, "individual", "fidelity")
    yield Claim(KRONA, "prompt fidelity above LoRA's", fidelity, above(fidelity))
    spreads = [_spread(records, method) for method in (KRONA, LORA)]
    if None not in spreads:
        text = "; ".join(f"{method} {spread:.3f}" for method, spread in zip((KRONA, LORA), spreads, strict=True))
        smaller = float(spreads[0] or 0.0) < float(spreads[1] or 0.0)
        yield Claim(KRONA, "minds its settings less than LoRA (spread of the gain)", text, HELD if smaller else FAILED)


def _sara(records: Sequence[Record]) -> Iterator[Claim]:
    """arXiv 2409.06633, image customisation: better prompt fidelity at somewhat lower identity."""
    if not trainings_of(records, LORA):
        return
    fidelity = difference(records, SARA, LORA, "individual", "fidelity")
    yield Claim(SARA, "prompt fidelity above LoRA's", fidelity, above(fidelity))
    identity = difference(records, SARA, LORA, "individual", "identity")
    lower = Interval(-identity.estimate, -identity.high, -identity.low, identity.num)
    yield Claim(SARA, "identity below LoRA's", identity, above(lower))


def _b_lora(records: Sequence[Record]) -> Iterator[Claim]:
    """arXiv 2403.14572: one picture is enough for its content and for its style, with 70 % less storage than all blocks."""
    pictures = pictures_of(records, B_LORA, "individual")
    if pictures:
        content = share_interval([bool(record["content"]) for record in pictures])
        base = [bool(record["content"]) for record in pictures_of(records, "base", "individual")]
        floor = sum(base) / max(1, len(base))
        near = content.estimate >= floor - MOST_CONTENT_LOST
        word = OPEN if floor < BASE_DRAWS_IT else HELD if near else FAILED
        yield Claim(B_LORA, f"content: the class, unnamed, is seen (base with its name {floor:.2f})", content, word)
    styles = pictures_of(records, B_LORA, "style")
    if styles:
        style = share_interval([bool(record["right"]) for record in styles])
        base = [bool(record["right"]) for record in pictures_of(records, "base", "style")]
        floor = sum(base) / max(1, len(base))
        yield Claim(B_LORA, f"style: seen in other things, from one picture (base {floor:.2f})", style, above(style, floor))
    if trainings_of(records, LORA):
        ratio = _mean_of(records, B_LORA, "file_bytes") / _mean_of(records, LORA, "file_bytes")
        yield Claim(B_LORA, "smaller file than LoRA in all blocks (paper: .30 at one rank)", ratio, HELD if ratio < 1 else FAILED)


def _mean_of(records: Sequence[Record], method: str, key: str) -> float:
    return mean(float(training[key]) for training in trainings_of(records, method))


def _spread(records: Sequence[Record], method: str) -> float | None:
    """Standard deviation of the identity gain over a method's grid, or None where there is none."""
    on_grid = {r["concept"] for r in records if r["method"] == method and r["variant"] != DEFAULT}
    chosen = [r for r in records if r["concept"] in on_grid]
    variants = {str(r["variant"]) for r in chosen if r["method"] == method}
    found = [judged(chosen, method, "individual", variant) for variant in variants]
    gains = [one.identity_gain.estimate for one in found if one is not None]
    return pstdev(gains) if len(gains) > 1 else None
