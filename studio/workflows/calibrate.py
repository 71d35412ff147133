"""Calibrated strengths: each adapter is measured once on a base model, and what was found is kept by the contents of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from studio.composition.calibration import EffectCurve, Measuring, measure
from studio.composition.plan import CompositionPlan
from studio.composition.scene import naming
from studio.pipelines.adapters import Adapter, Route
from studio.pipelines.adapters.roles import select_roles
from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import UserError
from studio.pipelines.files import atomic_write_json
from studio.pipelines.generation import check_adapters
from studio.pipelines.scoring import Scorer, embedded_referee
from studio.storage.home import find_home

GUIDE = "guide"


class Calibrator:
    """Measures adapters on one base model by one scorer.

    Args:
        folder: of what was found, a JSON file per adapter, base model, scorer and way of measuring.
        on_step: called with pictures drawn and pictures in all, for each adapter that is not known yet.
    """

    def __init__(
        self,
        base: BaseModel,
        scorer: Scorer,
        folder: Path,
        measuring: Measuring | None = None,
        *,
        say: Callable[[str], None] | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        if base.family.name != "embedded" and scorer.name == GUIDE:
            raise UserError(
                f"The guide knows the embedded base model's world only, and the base is {base.family.title}: name a folder with "
                "a CLIP model as the scorer."
            )
        self.base = base
        self.scorer = scorer
        self.folder = folder
        self.measuring = Measuring() if measuring is None else measuring
        self._say = say
        self._on_step = on_step

    def curve(self, adapter: Adapter) -> EffectCurve:
        """Its effects by strength, from the cache or measured now.

        Raises:
            UserError: the adapter is for another base model, or nothing can be measured.
        """
        check_adapters(self.base, [Route(adapter)])
        what = {
            "adapter": adapter.content_hash(),
            "words": [adapter.info.trigger, adapter.info.class_noun],
            "base": self.base.content_hash,
            "scorer": self.scorer.content_hash,
            "measuring": json.loads(json.dumps(asdict(self.measuring))),
        }
        path = self.folder / f"{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]}.json"
        known = _read(path, what)
        if known is not None:
            return known
        if self._say is not None:
            self._say(f"measuring {adapter.info.name}")
        curve = measure(self.base, adapter, self.scorer, self.measuring, self._on_step)
        if self.base.content_hash:  # else nothing tells this base model from another
            values = {"name": adapter.info.name, "strengths": list(curve.strengths), "effects": list(curve.effects)}
            atomic_write_json(path, {**what, **values})
        return curve

    def plan_with_raw_strengths(self, plan: CompositionPlan, adapters: Sequence[Adapter]) -> CompositionPlan:
        """A plan with calibrated strengths as the one with the sliders that they stand for; another plan as it is.

        Raises:
            UserError: an adapter has no such effect; the sentence names the entry.
        """
        if plan.strength_unit == "raw":
            return plan
        entries = []
        for index, (entry, adapter) in enumerate(zip(plan.entries, adapters, strict=True)):
            with naming(plan.title_of(index)):
                part = adapter if entry.half is None else select_roles(adapter, [entry.half])
                raw = self.curve(part).calibrated(entry.strength, plan.title_of(index))
            if self._say is not None:
                self._say(f"{plan.title_of(index)}: calibrated strength {entry.strength:g} is {raw:.3g}")
            entries.append(entry.model_copy(update={"strength": raw}))
        return plan.model_copy(update={"entries": tuple(entries), "strength_unit": "raw"})


def calibrator_by_guide(base: BaseModel) -> Calibrator:
    """What a plan is calibrated by if nobody says otherwise: the guide, with its findings in the studio's home."""
    return Calibrator(base, embedded_referee(GUIDE), calibrations_dir())


def calibrations_dir() -> Path:
    """Where findings are kept by default."""
    return find_home().root / "calibrations"


def _read(path: Path, what: dict[str, object]) -> EffectCurve | None:
    """What the file says; None if there is none, or it is about something else or damaged, and is measured again."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if any(data[key] != value for key, value in what.items()):
            return None
        curve = EffectCurve(tuple(map(float, data["strengths"])), tuple(map(float, data["effects"])))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return curve if len(curve.strengths) == len(curve.effects) > 1 else None
