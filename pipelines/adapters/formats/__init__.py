"""File dialects, one file each. Add a new one's `Dialect` to `DIALECTS`; the contract tests then run on it."""

from __future__ import annotations

from studio.pipelines.adapters.formats.diffusekrona import DIFFUSEKRONA
from studio.pipelines.adapters.formats.diffusers_legacy import DIFFUSERS_LEGACY
from studio.pipelines.adapters.formats.kohya import KOHYA
from studio.pipelines.adapters.formats.lycoris import LYCORIS
from studio.pipelines.adapters.formats.peft import PEFT
from studio.pipelines.adapters.formats.peft_lokr import PEFT_LOKR
from studio.pipelines.adapters.formats.sparse import SPARSE, SPARSE_VALUES
from studio.pipelines.adapters.serialization.dialect import Dialect

DIALECTS: tuple[Dialect, ...] = (
    PEFT,
    PEFT_LOKR,
    KOHYA,
    LYCORIS,
    SPARSE,
    SPARSE_VALUES,
    DIFFUSERS_LEGACY,
    DIFFUSEKRONA,
)

__all__ = ["DIALECTS", "DIFFUSEKRONA", "DIFFUSERS_LEGACY", "KOHYA", "LYCORIS", "PEFT", "PEFT_LOKR", "SPARSE", "SPARSE_VALUES"]
