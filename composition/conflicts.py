"""What will get in whose way, measured before anything is drawn.

For two adapters i and j: how much j does to what the model sees when it draws i's concept, ‖ΔⱼXᵢ‖ / ‖ΔᵢXᵢ‖ (crosstalk, not
symmetric); how far their changes of the same column point along one line (mean |cos|, ZipLoRA's measure); and how much of each
sits in layers that both change. For each alone: whether it changes what is fine in a picture or what is coarse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from studio.composition.activations import as_matrix, effect, input_grams
from studio.composition.frequency_profiles import FrequencyProfile, profile_of
from studio.composition.merged import concept_prompt
from studio.composition.scene import Scene
from studio.pipelines.adapters import ParameterPath
from studio.pipelines.adapters.conversion import dense_change
from studio.pipelines.errors import UserError

SAMPLE_STEPS = 4
"""Denoising steps of the pictures that inputs are taken from: from pure noise to nearly finished."""

LOW_CROSSTALK = 0.3
"""Below this the plain sum of subjects is expected to work. A first guess, to be replaced by a measured bar."""

UNEVEN = 2.0
"""An adapter with more than this times the usual effect is worth a smaller strength."""


@dataclass(frozen=True, kw_only=True)
class Conflict:
    """One adapter in the way of another.

    Attributes:
        first, second: indices of the entries, the first before the second.
        crosstalk: (of the second on the first's inputs, of the first on the second's), relative to the owner's effect there.
        columns: mean |cos| of the columns that both change, 0 to 1, weighted by their sizes.
        shared: share of each one's ‖ΔW‖² in layers that both change.
    """

    first: int
    second: int
    crosstalk: tuple[float, float]
    columns: float
    shared: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ConflictReport:
    """All pairs, and what follows.

    Attributes:
        effects: ‖ΔᵢXᵢ‖ of each entry at its strength, over all layers. frequencies: of each entry's adapter.
        strategy: name of the suggested one. reason: why, in a sentence.
        strengths: suggested ones, None where the plan's are fine.
        not_measured: layers too wide for inputs to be kept.
    """

    titles: tuple[str, ...]
    effects: tuple[float, ...]
    frequencies: tuple[FrequencyProfile, ...]
    conflicts: tuple[Conflict, ...]
    strategy: str
    reason: str
    strengths: tuple[float | None, ...]
    not_measured: int

    def lines(self) -> list[str]:
        """The report as text."""
        said = []
        for one in self.conflicts:
            said.append(
                f"{self.titles[one.first]} and {self.titles[one.second]}: crosstalk {one.crosstalk[0]:.2f} and "
                f"{one.crosstalk[1]:.2f} (1 is as much as the owner), columns {one.columns:.2f} alike, "
                f"{one.shared[0]:.0%} and {one.shared[1]:.0%} in shared layers"
            )
        said += [
            f"{title}: {profile.band} frequency ({profile.high_share:.2f} of its change is fine, and {profile.picture_share:.2f} "
            "of the picture)"
            for title, profile in zip(self.titles, self.frequencies, strict=True)
        ]
        said += [
            f"{title}: strength {strength:.2g} would bring its effect to that of the others"
            for title, strength in zip(self.titles, self.strengths, strict=True)
            if strength is not None
        ]
        if self.not_measured:
            said.append(f"{self.not_measured} layers are too wide to be measured")
        return [*said, f"suggested strategy: {self.strategy}, because {self.reason}"]


@torch.no_grad()
def conflict_report(scene: Scene) -> ConflictReport:
    """Measure every pair of entries on the base model's own activations (`SAMPLE_STEPS` steps per entry).

    Raises:
        UserError: there are fewer than two entries.
    """
    if len(scene.concepts) < 2:
        raise UserError("Conflicts need at least two entries.")
    layers = list(dict.fromkeys(path for concept in scene.concepts for path in concept.adapter.patches))
    request = replace(scene.request, steps=SAMPLE_STEPS)
    grams = [input_grams(scene.base, layers, [concept_prompt(scene, concept)], request) for concept in scene.concepts]
    tally = _Tally(len(scene.concepts))
    for path in layers:
        tally.add(_deltas(scene, path), [gram.get(path) for gram in grams])
    effects = tuple(math.sqrt(tally.effects[index][index]) for index in range(len(scene.concepts)))
    conflicts = tally.conflicts()
    strategy, reason = suggest(scene, conflicts)
    return ConflictReport(
        titles=tuple(concept.entry.title for concept in scene.concepts),
        effects=effects,
        frequencies=tuple(profile_of(scene, concept) for concept in scene.concepts),
        conflicts=conflicts,
        strategy=strategy,
        reason=reason,
        strengths=suggested_strengths([concept.strength for concept in scene.concepts], effects),
        not_measured=sum(path.parameter == "weight" and path not in grams[0] for path in layers),
    )


def suggest(scene: Scene, conflicts: Sequence[Conflict]) -> tuple[str, str]:
    """A strategy's name, and why."""
    if any(concept.mask is not None for concept in scene.concepts):
        return "regional", "there are regions"
    worst = max(max(conflict.crosstalk) for conflict in conflicts)
    if worst < LOW_CROSSTALK:
        return "merge", f"no adapter does more than {worst:.0%} of another's effect on the other's own inputs"
    subjects = sum(concept.role in ("subject", "object") for concept in scene.concepts)
    if subjects >= 2:
        return "composite", f"the adapters disturb each other ({worst:.0%}), and {subjects} things must be seen at every step"
    return "switch", f"the adapters disturb each other ({worst:.0%}), and one thing with its style or place can take turns"


def suggested_strengths(strengths: Sequence[float], effects: Sequence[float]) -> tuple[float | None, ...]:
    """For each that does more than `UNEVEN` times the median effect, the strength that would bring it there."""
    known = sorted(effect for effect in effects if effect > 0)
    if not known:
        return (None,) * len(effects)
    median = known[(len(known) - 1) // 2]
    return tuple(
        strength * median / own if own > UNEVEN * median else None for strength, own in zip(strengths, effects, strict=True)
    )


class _Tally:
    """Sums over layers."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.effects = [[0.0] * count for _ in range(count)]  # [i][j]: ‖ΔⱼXᵢ‖²
        self.energy = [0.0] * count
        self.pairs: dict[tuple[int, int], list[float]] = {
            (i, j): [0.0, 0.0, 0.0, 0.0] for j in range(count) for i in range(j)
        }  # Σ weight·|cos|, Σ weight, shared energy of i, of j

    def add(self, deltas: Mapping[int, Tensor], grams: Sequence[Tensor | None]) -> None:
        for j, delta in deltas.items():
            self.energy[j] += float(delta.square().sum())
            for i, gram in enumerate(grams):
                if gram is not None:
                    self.effects[i][j] += effect(delta, gram) ** 2
        for (i, j), sums in self.pairs.items():
            if i in deltas and j in deltas:
                first, second = as_matrix(deltas[i]), as_matrix(deltas[j])
                sizes = first.norm(dim=0) * second.norm(dim=0)
                sums[0] += float((first * second).sum(dim=0).abs().sum())
                sums[1] += float(sizes.sum())
                sums[2] += float(first.square().sum())
                sums[3] += float(second.square().sum())

    def conflicts(self) -> tuple[Conflict, ...]:
        return tuple(
            Conflict(
                first=i,
                second=j,
                crosstalk=(self._relative(i, j), self._relative(j, i)),
                columns=sums[0] / sums[1] if sums[1] > 0 else 0.0,
                shared=(_share(sums[2], self.energy[i]), _share(sums[3], self.energy[j])),
            )
            for (i, j), sums in self.pairs.items()
        )

    def _relative(self, owner: int, other: int) -> float:
        own = self.effects[owner][owner]
        return math.sqrt(self.effects[owner][other] / own) if own > 0 else 0.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _deltas(scene: Scene, path: ParameterPath) -> dict[int, Tensor]:
    """strength · ΔW of each entry that changes `path`, where it is a matrix."""
    found: dict[int, Tensor] = {}
    for index, concept in enumerate(scene.concepts):
        patch = concept.adapter.patches.get(path)
        if patch is None or path.parameter != "weight":
            continue
        delta = concept.strength * dense_change(patch, path, scene.base.components(), concept.title)
        if delta.ndim > 1:
            found[index] = delta.float()
    return found
