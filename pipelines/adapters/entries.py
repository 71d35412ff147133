"""What acts on a layer: a bound patch with its route."""

from __future__ import annotations

from typing import NamedTuple

from studio.pipelines.adapters.patches.base import BoundPatch
from studio.pipelines.adapters.routing import Route, RouteWeight


class Entry(NamedTuple):
    """One patch on one layer.

    Attributes:
        bound: the patch. weight: what its effect is multiplied by. route: whose it is.
        needs_base_out: whether it reads the unpatched output. trains: whether any of its tensors does.
    """

    bound: BoundPatch
    weight: RouteWeight
    route: Route
    needs_base_out: bool
    trains: bool
