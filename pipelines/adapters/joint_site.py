"""One place of a model with the LoRAs on it, run as a joint product; and the writing of factors into its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from studio.kernels.joint_layout import JointLayout, padded_rank
from studio.kernels.joint_lora import joint_lora_conv2d, joint_lora_linear, row_lora_conv2d, row_lora_linear
from studio.kernels.joint_training import Part, joint_lora_training
from studio.pipelines.adapters.entries import Entry
from studio.pipelines.adapters.joint_weights import join
from studio.pipelines.adapters.layers import layer_spec
from studio.pipelines.adapters.patches.base import at_least_float32
from studio.pipelines.adapters.patches.lora import BoundLoRA
from studio.pipelines.adapters.sites import Place
from studio.pipelines.adapters.traced import LEAST_RANK, TracedSite

Mode = Literal["everywhere", "by row", "by place"]

LARGEST_SHARE = 4
"""Blocks for each row of a batch are part of the joint product while they are at most a 4th of the layers' own outputs."""


class Copy(NamedTuple):
    """A factor's way into the memory: target, source, and what to multiply by (a number, or a tensor without dimensions)."""

    target: Tensor
    source: Tensor
    factor: float | Tensor


class _Slot(NamedTuple):
    """One adapter's rows in every block: where, how many, and for each active layer its entry, if it has one."""

    offset: int
    rank: int
    entries: tuple[Entry | None, ...]

    def signature(self) -> tuple[int, ...]:
        """What decides which numbers of the memory are written."""
        ranks = (0 if entry is None else _lora(entry).down.shape[0] for entry in self.entries)
        return (self.offset, self.rank, *ranks)


_changes_of_memory = 0


def changes_of_memory() -> int:
    """How often tensors that joint products read were made anew: who recorded their addresses has to look whether it changed."""
    return _changes_of_memory


def _count_change() -> None:
    global _changes_of_memory  # noqa: PLW0603
    _changes_of_memory += 1


class JointSite:
    """The layers of a place and the LoRAs on them.

    Args:
        place: the layers. entries: for each layer the LoRAs, `bound` a `BoundLoRA`.
        shared: where sites of one opening keep what depends on routes and sizes alone.
        is_compiled: whether a compiler reads it.

    Attributes:
        token: what stands in the memory as its owner.
        traced: what a compiler reads; None where it computes a sum instead.
    """

    def __init__(
        self,
        place: Place,
        entries: Sequence[Sequence[Entry]],
        shared: dict[tuple[Any, ...], Tensor],
        *,
        is_compiled: bool = False,
    ) -> None:
        self.place = place
        self.modules = place.modules
        self.entries = [list(own) for own in entries]
        self.token = object()
        self.is_convolution = isinstance(self.modules[0], nn.Conv2d)
        self.mode: Mode = _mode([entry for own in entries for entry in own])
        self.active = tuple(index for index, own in enumerate(entries) if own)
        self.trains = any(entry.trains for own in entries for entry in own)
        self._slots = _slots([self.entries[layer] for layer in self.active])
        weights = [entry.weight for own in entries for entry in own]
        self._strengths = [weight.strength for weight in weights if isinstance(weight.strength, Tensor)]
        self._tracked = [tensor for tensor in (*_trained(self.entries), *self._strengths) if not tensor.is_inference()]
        self._versions: tuple[int, ...] = ()
        self._shared = shared
        self._is_compiled = is_compiled
        self.traced: TracedSite | None = None
        self._lay_out()

    def _lay_out(self) -> None:
        """Choose the layout, get the memory, and list what is to be written."""
        _count_change()
        weight = self.modules[0]._parameters["weight"]
        assert weight is not None
        width, rank, copies = weight.shape[0], max(1, sum(slot.rank for slot in self._slots)), 1
        self._rows_slots: list[list[_Slot]] = []
        if self.mode == "by row":
            self._rows_slots = _slots_by_row(self._slots)
            copies = len(self._rows_slots)
            rank = max(1, *(sum(slot.rank for slot in slots) for slots in self._rows_slots))
        padded = padded_rank(rank, LEAST_RANK if self._is_compiled else 1)
        layout = JointLayout(width, len(self.modules), self.active, padded, copies)
        self.is_apart = copies > 1 and layout.block * copies * LARGEST_SHARE > layout.num_outputs
        self.layout = layout
        self.weights, memory = join(self.modules, 0 if self.is_apart else layout.block * copies)
        self.rows = memory[: layout.num_outputs if self.is_apart else layout.num_rows]
        self._pointers = [module._parameters["weight"].data_ptr() for module in self.modules]  # type: ignore[union-attr]
        self.parameters = [module._parameters["weight"] for module in self.modules]
        shape = (copies, len(self.active) * width, layout.block) if copies > 1 else (len(self.active), width, layout.rank)
        self.ups = self.weights.room_for_ups(shape[0] * shape[1] * shape[2], self.rows).view(shape)
        self.downs: Tensor | None = None
        if self.is_apart:
            with torch.inference_mode(False):
                self.downs = self.rows.new_zeros((copies, layout.block, *self.rows.shape[1:]))
        self.signature = (layout, self.mode, *(slot.signature() for slot in self._slots), *self._rows_signature())
        self.copies = self._copies()

    def _rows_signature(self) -> list[tuple[int, ...]]:
        return [tuple(self._slots.index(slot) for slot in slots) for slots in self._rows_slots]

    def _copies(self) -> list[Copy]:
        found: list[Copy] = []
        layout = self.layout
        if self.mode == "by row":
            for row, slots in enumerate(self._rows_slots):
                offset = 0
                for slot in slots:
                    for position, entry in enumerate(slot.entries):
                        if entry is not None:
                            found += self._row_copies(row, position, offset, entry)
                    offset += slot.rank
            return found
        for slot in self._slots:
            for position, entry in enumerate(slot.entries):
                if entry is None:
                    continue
                lora, rows = _lora(entry), self.rows[layout.inner(position)]
                span = slice(slot.offset, slot.offset + lora.down.shape[0])
                strength = 1.0 if self.mode == "by place" else entry.weight.strength
                found.append(Copy(rows[span], lora.down, 1.0))
                found.append(Copy(self.ups[position][:, span], lora.up.flatten(1), lora.scale * strength))
        return found

    def _row_copies(self, row: int, position: int, offset: int, entry: Entry) -> list[Copy]:
        layout, lora = self.layout, _lora(entry)
        start = position * layout.rank + offset
        span = slice(start, start + lora.down.shape[0])
        block = (
            self.downs[row] if self.downs is not None else self.rows[layout.num_outputs + row * layout.block :][: layout.block]
        )
        ups = self.ups[row][position * layout.width : (position + 1) * layout.width]
        return [
            Copy(block[span], lora.down, 1.0),
            Copy(ups[:, span], lora.up.flatten(1), lora.scale * entry.weight.of_row(row)),
        ]

    def is_current(self) -> bool:
        """Whether the memory holds these factors, as they are now."""
        return self.weights.owner is self.token and (not self._tracked or self._versions == self._present_versions())

    def is_in_place(self) -> bool:
        """Whether the layers still have the weights that were joined."""
        return all(
            module._parameters["weight"] is parameter and parameter.data_ptr() == pointer  # type: ignore[union-attr]
            for module, parameter, pointer in zip(self.modules, self.parameters, self._pointers, strict=True)
        )

    def settle(self) -> None:
        """Be ready to be written: a memory of another layout is cleared, and lost memory is made again."""
        memory_is_lost = self.weights.ups is None or self.ups.data_ptr() != self.weights.ups.data_ptr()
        if memory_is_lost or not self.is_in_place() or self._outgrown():
            self._lay_out()
            self._shared.clear()
        if self.weights.signature != self.signature:
            self.rows[self.layout.num_outputs :].zero_()
            self.ups.zero_()
            self.weights.signature = self.signature
        self.weights.owner = self.token
        bias = self.weights.joint_bias(self.modules, self.rows)
        if self._is_compiled and self.mode == "everywhere" and not self.is_convolution and not self.trains:
            width, num_layers, active = self.layout[:3]
            self.traced = TracedSite(self.rows, self.ups, bias, width, num_layers, active)
        versions = self._present_versions()
        if self._strengths and versions != self._versions:
            self.copies = self._copies()
            self._shared.clear()
            _count_change()
        self._versions = versions

    def _outgrown(self) -> bool:
        """Whether the layers were joined anew by somebody who needed more room."""
        return self.weights is not join(self.modules, 0)[0]

    def _present_versions(self) -> tuple[int, ...]:
        return tuple(tensor._version for tensor in self._tracked)

    def runs(self, x: Tensor) -> bool:
        """Whether this input can be computed jointly: of the weights' type and place, and with gradients only where all rows
        and places are alike."""
        if torch.is_grad_enabled() and (x.requires_grad or self.trains) and (self.mode != "everywhere" or self.is_convolution):
            return False
        dtype = _autocast_type(x)
        same_type = x.dtype == self.rows.dtype if dtype is None else dtype == self.rows.dtype
        return same_type and x.device == self.rows.device and self.is_in_place()

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        """The layers' outputs with their LoRAs. The memory must be current.

        Raises:
            ValueError: the batch has another number of rows than the routes name.
        """
        if self.mode == "by row" and len(x) != self.layout.copies:
            raise ValueError(f"A route names {self.layout.copies} rows and the model's batch has {len(x)}.")
        if x.dtype != self.rows.dtype:
            x = x.to(self.rows.dtype)
        bias = self.weights.joint_bias(self.modules, self.rows)
        if bias is not None:
            bias = bias[: len(self.rows)]
        if self.is_convolution:
            return (self._convolved(x, bias),)
        if torch.is_grad_enabled() and (x.requires_grad or self.trains):
            return self._trained(x, bias)
        if self.is_apart:
            assert self.downs is not None
            return row_lora_linear(x, self.rows, self.downs, self.ups, self.layout, bias)
        return joint_lora_linear(x, self.rows, self.ups, self.layout, bias, self._inner_factor(x))

    def _convolved(self, x: Tensor, bias: Tensor | None) -> Tensor:
        spec = layer_spec(self.modules[0])
        if self.is_apart:
            assert self.downs is not None
            return row_lora_conv2d(x, self.rows, self.downs, self.ups, bias, spec.stride, spec.padding, spec.dilation)
        factor = None
        if self.mode == "by place":
            height, width = _output_grid(x, self.modules[0])
            factor = self._inner_factor_on(x.new_empty(()).expand(len(x), 1, height, width), (height, width))
        return joint_lora_conv2d(x, self.rows, self.ups, self.layout, bias, spec.stride, spec.padding, spec.dilation, factor)

    def _trained(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        parts: list[tuple[Part, ...]] = []
        factors: list[Tensor | None] = []
        for position in range(len(self.active)):
            own: list[Part] = []
            for slot in self._slots:
                entry = slot.entries[position]
                if entry is None:
                    continue
                lora = _lora(entry)
                own.append(Part(slot.offset, lora.down.shape[0], lora.scale * float(entry.weight.strength)))
                factors += [lora.down if entry.trains else None, lora.up if entry.trains else None]
            parts.append(tuple(own))
        return joint_lora_training(
            x, self.rows, self.ups, self.layout, bias, tuple(parts), tuple(factors), self.place.keeps_output, self._refresh
        )

    def _refresh(self) -> None:
        """Before a backward pass: another adapter may have been written since."""
        if self.weights.owner is not self.token:
            write([self])

    def _inner_factor(self, x: Tensor) -> Tensor | None:
        if self.mode != "by place":
            return None
        shape = x.shape[:-1] if x.ndim > 2 else (len(x), 1)
        factor = self._inner_factor_on(x.new_empty(()).expand(*shape, 1), tuple(shape[1:]))
        return factor if x.ndim > 2 else factor[:, 0]

    def _inner_factor_on(self, like: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Each adapter's weight for each row and place, `[B or 1, …, R]`, or `[B or 1, R, h, w]` for a convolution."""
        acting = tuple((self._first(slot).route, slot.rank) for slot in self._slots)
        key = (acting, self.layout.rank, self.is_convolution, grid, like.shape[0], like.dtype, like.device)
        if key not in self._shared:
            axis = 1 if self.is_convolution else -1
            found = []
            for slot in self._slots:
                factor = self._first(slot).weight.factor(like, self.is_convolution)
                value = factor if isinstance(factor, Tensor) else like.new_full((1,) * like.ndim, factor)
                size = [len(value), *like.shape[1:]]
                size[axis] = slot.rank
                found.append(value.expand(size) if value.ndim == like.ndim else value)
            most = max(len(value) for value in found)
            rank = self.layout.rank - sum(slot.rank for slot in self._slots)
            found = [value.expand(most, *value.shape[1:]) for value in found]
            if rank:
                size = list(found[0].shape)
                size[axis] = rank
                found.append(found[0].new_zeros(size))
            self._shared[key] = torch.cat(found, dim=axis)
        return self._shared[key]

    @staticmethod
    def _first(slot: _Slot) -> Entry:
        return next(entry for entry in slot.entries if entry is not None)


@torch.no_grad()
def write(sites: Sequence[JointSite]) -> None:
    """Put the factors of all `sites` where they belong, in the type that their layers compute in: two calls for all."""
    for site in sites:
        site.settle()
    copies = [copy for site in sites for copy in site.copies]
    if not copies:
        return
    as_they_are = [copy for copy in copies if isinstance(copy.factor, float) and copy.factor == 1.0]
    scaled = [copy for copy in copies if not (isinstance(copy.factor, float) and copy.factor == 1.0)]
    if as_they_are:
        torch._foreach_copy_([copy.target for copy in as_they_are], [copy.source for copy in as_they_are])
    if scaled:
        values = torch._foreach_mul([at_least_float32(copy.source) for copy in scaled], [float(copy.factor) for copy in scaled])
        torch._foreach_copy_([copy.target for copy in scaled], values)


def can_be_joint(entries: Sequence[Entry]) -> bool:
    """Whether all of these are LoRAs whose routes a joint product can follow."""
    weights = [entry.weight for entry in entries]
    if not entries or not all(isinstance(entry.bound, BoundLoRA) for entry in entries):
        return False
    learned = any(isinstance(weight.strength, Tensor) and weight.strength.requires_grad for weight in weights)
    counts = {weight.num_rows for weight in weights} - {None}
    return not learned and len(counts) < 2 and counts != {1}


def _mode(entries: Sequence[Entry]) -> Mode:
    if any(entry.weight.canvas is not None for entry in entries):
        return "by place"
    return "everywhere" if all(entry.weight.is_one_number for entry in entries) else "by row"


def _lora(entry: Entry) -> BoundLoRA:
    assert isinstance(entry.bound, BoundLoRA)
    return entry.bound


def _slots(entries: Sequence[Sequence[Entry]]) -> list[_Slot]:
    """The adapters in order, each with one span of rows in every layer's block."""
    keys: dict[tuple[int, int], list[Entry | None]] = {}
    for position, own in enumerate(entries):
        seen: dict[int, int] = {}
        for entry in own:
            number = seen.get(id(entry.route), 0)
            seen[id(entry.route)] = number + 1
            keys.setdefault((id(entry.route), number), [None] * len(entries))[position] = entry
    found, offset = [], 0
    for by_layer in keys.values():
        rank = max(_lora(entry).down.shape[0] for entry in by_layer if entry is not None)
        found.append(_Slot(offset, rank, tuple(by_layer)))
        offset += rank
    return found


def _slots_by_row(slots: Sequence[_Slot]) -> list[list[_Slot]]:
    """For each row of the batch the adapters that act on it."""
    firsts = [next(entry for entry in slot.entries if entry is not None) for slot in slots]
    num_rows = next(count for entry in firsts if (count := entry.weight.num_rows) is not None)
    return [
        [slot for slot, first in zip(slots, firsts, strict=True) if first.weight.of_row(row) != 0.0] for row in range(num_rows)
    ]


def _trained(entries: Sequence[Sequence[Entry]]) -> list[Tensor]:
    loras = [_lora(entry) for own in entries for entry in own if entry.trains]
    return [tensor for lora in loras for tensor in (lora.down, lora.up)]


def _autocast_type(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def _output_grid(x: Tensor, module: nn.Module) -> tuple[int, int]:
    spec = layer_spec(module)
    if spec.padding == "same":
        return x.shape[-2], x.shape[-1]
    padding = (0, 0) if isinstance(spec.padding, str) else spec.padding
    sides = zip(x.shape[-2:], padding, spec.dilation, spec.kernel, spec.stride, strict=True)
    height, width = (
        (side + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1 for side, pad, dilation, kernel, stride in sides
    )
    return height, width
