"""File dialects, one file each. Add a new one's `Dialect` to `DIALECTS`; the contract tests then run on it."""

from __future__ import annotations

from studio.pipelines.adapters.formats.diffusers_legacy import DIFFUSERS_LEGACY
from studio.pipelines.adapters.formats.kohya import KOHYA
from studio.pipelines.adapters.formats.lycoris import LYCORIS
from studio.pipelines.adapters.formats.peft import PEFT
from studio.pipelines.adapters.serialization.dialect import Dialect

DIALECTS: tuple[Dialect, ...] = (PEFT, KOHYA, LYCORIS, DIFFUSERS_LEGACY)

__all__ = ["DIALECTS", "DIFFUSERS_LEGACY", "KOHYA", "LYCORIS", "PEFT"]
