"""Several adapters as one: exactly, compressed, or by a rule that settles their conflicts."""

from __future__ import annotations

from studio.composition.merging.compressing import compress
from studio.composition.merging.concatenation import merge_exactly
from studio.composition.merging.elementwise import merge_layers
from studio.composition.merging.parts import Merged, Weighted
from studio.composition.merging.regression import merge_by_regression

__all__ = ["Merged", "Weighted", "compress", "merge_by_regression", "merge_exactly", "merge_layers"]
