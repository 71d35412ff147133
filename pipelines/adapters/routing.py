"""Routes: how strongly an adapter acts, on which pictures of a batch, and where on the canvas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.families import module_axis


@dataclass(frozen=True, eq=False)
class Route:
    """One adapter's part in a pass of the model.

    Attributes:
        adapter: what acts.
        strength: the user's slider; multiplies ΔW. A number, a tensor of no dimensions, or one value per row `[B]`.
        rows: which rows of the batch it acts on, bool or weights `[B]`; None for all. B is the batch as the model sees
            it, with every guidance branch.
        mask: where on the canvas it acts, `[H, W]` in 0..1, at any resolution with the canvas's aspect; None for all.
    """

    adapter: Adapter
    strength: float | Tensor = 1.0
    rows: Tensor | None = None
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.rows is not None and self.rows.ndim != 1:
            raise ValueError(f"rows is one value per row, [B]; got the shape {list(self.rows.shape)}.")
        if self.mask is not None and self.mask.ndim != 2:
            raise ValueError(f"mask is [H, W]; got the shape {list(self.mask.shape)}.")
        if isinstance(self.strength, Tensor) and self.strength.ndim > 1:
            raise ValueError(f"strength is one number or one per row; got the shape {list(self.strength.shape)}.")

    @property
    def is_partial(self) -> bool:
        """Whether it acts on some rows or places only, or on rows in different strengths."""
        per_row = isinstance(self.strength, Tensor) and self.strength.ndim == 1
        return per_row or self.rows is not None or self.mask is not None


class LeftOut(NamedTuple):
    """A patch that does not act, and why."""

    adapter: str
    path: ParameterPath
    reason: str


class Router:
    """The routes of one opening of `patched`, resolved, and what had to be left out of them."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self.routes = routes
        self._left_out: list[LeftOut] = []
        self._canvases = {id(route): _Canvas(route.mask) for route in routes if route.mask is not None}

    def report(self) -> tuple[LeftOut, ...]:
        """Every patch that does not act: without a place in a region, not routable, or of a component not at hand."""
        return tuple(self._left_out)

    def leave_out(self, route: Route, path: ParameterPath, reason: str) -> None:
        """Note that `route` does not act at `path`."""
        self._left_out.append(LeftOut(route.adapter.info.name, path, reason))

    def resolve(self, route: Route, path: ParameterPath, device: torch.device) -> RouteWeight | None:
        """How `route` acts on the output of the module at `path`; None, and a line in the report, if it cannot."""
        if route.mask is not None:
            axis = module_axis(path.module) if path.component == "unet" else "encoder"
            if axis != "spatial":
                self.leave_out(route, path, f"a region does not reach it: its outputs are {_AXIS_MEANS[axis]}")
                return None
        if device.type == "meta":
            device = torch.device("cpu")  # a model without numbers, or one whose weights come when they are needed
        rows = None if route.rows is None else route.rows.to(device)
        strength = route.strength.to(device) if isinstance(route.strength, Tensor) else float(route.strength)
        if rows is not None and isinstance(strength, Tensor) and strength.ndim == 1 and strength.shape != rows.shape:
            raise ValueError(f"rows and strength differ in length: {len(rows)} and {len(strength)}.")
        chosen = None if rows is None or bool((rows != 0).all()) else rows.nonzero().flatten()
        return RouteWeight(strength, rows, chosen, self._canvases.get(id(route)))


_AXIS_MEANS = {
    "text": "words, not places",
    "global": "one vector for the whole picture",
    "encoder": "a prompt's, not the picture's",
}


@dataclass(frozen=True, eq=False)
class RouteWeight:
    """What a module's Δ(x) is multiplied by.

    Attributes:
        strength: number, `[]` or `[B]`. rows: `[B]` or None.
        chosen: indices of the rows that are not zero, if some are; only these are computed.
        canvas: the mask, or None.
    """

    strength: float | Tensor
    rows: Tensor | None
    chosen: Tensor | None
    canvas: _Canvas | None

    @property
    def is_zero(self) -> bool:
        """Whether it surely changes nothing."""
        number_is_zero = not isinstance(self.strength, Tensor) and self.strength == 0.0
        return number_is_zero or (self.chosen is not None and len(self.chosen) == 0)

    @property
    def is_one_number(self) -> bool:
        """Whether every row and place of the batch has the same strength."""
        is_number = not isinstance(self.strength, Tensor) or (self.strength.ndim == 0 and not self.strength.requires_grad)
        return is_number and self.rows is None and self.canvas is None

    @property
    def num_rows(self) -> int | None:
        """How many rows it names; None if it names none."""
        named = [each for each in (self.strength, self.rows) if isinstance(each, Tensor) and each.ndim == 1]
        return len(named[0]) if named else None

    def of_row(self, row: int) -> float:
        """The number for one row of the batch."""
        per_row = isinstance(self.strength, Tensor) and self.strength.ndim == 1
        strength = float(self.strength[row]) if per_row else float(self.strength)  # type: ignore[index]
        return strength if self.rows is None else strength * float(self.rows[row])

    def factor(self, output: Tensor, is_convolution: bool) -> float | Tensor:
        """The multiplier for a whole output `[B, …, C]` or `[B, C, h, w]`: a number, or a tensor that broadcasts."""
        factor = self.strength
        for per_row in (self.strength, self.rows):
            if isinstance(per_row, Tensor) and per_row.ndim == 1 and len(per_row) != output.shape[0]:
                raise ValueError(f"A route names {len(per_row)} rows and the model's batch has {output.shape[0]}.")
        if isinstance(factor, Tensor):
            factor = _per_row(factor, output)
        if self.rows is not None:
            factor = factor * _per_row(self.rows, output)
        if self.canvas is not None:
            factor = factor * self.canvas.over(output, is_convolution)
        return factor


def _per_row(values: Tensor, output: Tensor) -> Tensor:
    """`[B]` or `[]` as `[B, 1, …, 1]` in the type of `output`."""
    return values.to(device=output.device, dtype=output.dtype).reshape(-1, *[1] * (output.ndim - 1))


class _Canvas:
    """A mask `[H, W]`, reduced to each grid of outputs once."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask.detach().to(torch.float32)
        self._grids: dict[tuple[int, int, torch.dtype, torch.device], Tensor] = {}

    def over(self, output: Tensor, is_convolution: bool) -> Tensor:
        """The mask as `[1, 1, h, w]` for a convolution's output, or `[1, h·w, 1]` for one of tokens."""
        if is_convolution:
            return self._grid(output.shape[-2], output.shape[-1], output)
        height, width = token_grid(output.shape[1], self.mask.shape[0], self.mask.shape[1])
        return self._grid(height, width, output).reshape(1, -1, 1)

    def _grid(self, height: int, width: int, output: Tensor) -> Tensor:
        key = (height, width, output.dtype, output.device)
        if key not in self._grids:
            reduced = mask_on_grid(self.mask, height, width)[None, None]
            self._grids[key] = reduced.to(device=output.device, dtype=output.dtype)
        return self._grids[key]


def mask_on_grid(mask: Tensor, height: int, width: int) -> Tensor:
    """A mask `[H, W]` as `[height, width]`, float32: the mean over each cell, so that masks that sum to one still do."""
    return F.interpolate(mask.detach().to(torch.float32)[None, None], (height, width), mode="area")[0, 0]


def token_grid(num_tokens: int, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of `num_tokens` tokens on a canvas of the given aspect: of all that multiply to it, the nearest.

    Raises:
        ValueError: if no grid of so many tokens is within a factor of 1.5 of the aspect; the mask is not this canvas's.
    """
    wanted = math.log(height / width)
    grids = [(rows, num_tokens // rows) for rows in range(1, num_tokens + 1) if num_tokens % rows == 0]
    best = min(grids, key=lambda grid: abs(math.log(grid[0] / grid[1]) - wanted))
    if abs(math.log(best[0] / best[1]) - wanted) > math.log(1.5):
        raise ValueError(f"{num_tokens} positions do not form a grid with the aspect of a {height}×{width} mask.")
    return best
