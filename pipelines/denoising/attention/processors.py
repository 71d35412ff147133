"""The attention itself, in diffusers' form of a processor: torch's fused attention, in parts where parts differ.

Places that read another text, or see other places, are computed as a smaller attention of their own instead of one large
one with a mask: the scores that a mask would hide are never computed, every kernel can do it, and what is not seen cannot
reach the result by a single bit, whatever its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.kernels.attention_map import attention_map
from studio.kernels.attention_with_map import attention_with_map
from studio.kernels.region_attention import region_attention
from studio.pipelines.adapters.projections import Attend, project, project_out, split_heads
from studio.pipelines.denoising.attention.control import AttentionControl, Captured, KeyValue
from studio.pipelines.denoising.attention.layers import AttentionLayer


class CrossAttention:
    """Positions read words: the pass's, or their region's, from keys and values that may be there already."""

    def __init__(
        self,
        layer: AttentionLayer,
        control: AttentionControl,
        captures: Sequence[Captured],
        attend: Attend = F.scaled_dot_product_attention,
    ) -> None:
        self.layer = layer
        self.control = control
        self.captures = captures
        self.attend = attend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """`hidden_states` `[B, Q, C]` and text `[B, T, D]` to `[B, Q, C]`."""
        assert encoder_hidden_states is not None
        assert attention_mask is None, "texts of this kind of model are not masked"
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        own = tuple(split_heads(part, attn.heads) for part in self._text(attn, encoder_hidden_states))
        pairs = self.control.region_text.get(self.layer.name, ())
        regions = [tuple(split_heads(part, attn.heads) for part in pair) for pair in pairs]
        grid = self.layer.grid(*self.control.size)
        alone = self._alone(len(query), is_divided=bool(regions))
        if alone is not None:
            columns = alone.capture.columns
            assert columns is not None
            output, picked = attention_with_map(query, own[0], own[1], columns.to(query.device))
            alone.words[self.layer.name] = _on_grid(picked, grid)
            return project_out(attn, output)
        if regions:
            output = self._by_region(query, [own, *regions])
        else:
            output = self.attend(query, own[0], own[1])
        for captured in self.captures:
            rows, capture = captured.rows, captured.capture
            if capture.columns is not None:
                captured.words[self.layer.name] = _word_map(query[rows], own[0][rows], capture.columns, grid)
            for index, columns in enumerate(capture.region_columns):
                if columns is not None:
                    key = regions[index][0][rows]
                    captured.regions[index][self.layer.name] = _word_map(query[rows], key, columns, grid)
        return project_out(attn, output)

    def _alone(self, num_rows: int, *, is_divided: bool) -> Captured | None:
        """The capture of all rows' words, if that is all that is asked for of a pass for a gradient.

        Output and map are then computed together, in less time and memory. A pass that draws computes the output as ever, so that
        a picture is the same to the bit whether or not somebody reads its maps.
        """
        if (
            is_divided
            or not torch.is_grad_enabled()
            or len(self.captures) != 1
            or self.attend is not F.scaled_dot_product_attention
        ):
            return None
        captured = self.captures[0]
        is_whole = captured.rows == slice(0, num_rows) and captured.capture.columns is not None
        return captured if is_whole else None

    def _text(self, attn: Any, text: Tensor) -> KeyValue:
        """Keys and values of the pass's text, `[B, T, C]`."""
        known = self.control.text
        if known is None:
            key, value = project(attn, ("to_k", "to_v"), text)
            return key, value
        if self.layer.name not in known:
            # They depend on no latents, so a gradient with respect to those does not pass here.
            known[self.layer.name] = self.control.kept_text(attn, self.layer.name, text)
        return known[self.layer.name]

    def _by_region(self, query: Tensor, texts: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """Σ shareᵣ · attention(Q, Kᵣ, Vᵣ), each for its own places alone."""
        output = torch.zeros_like(query)
        places = self.control.places(self.layer.grid(*self.control.size), query.device)
        for at_and_share, (key, value) in zip(places, texts, strict=True):
            if at_and_share is None:
                continue
            at, share = at_and_share
            part = self.attend(query.index_select(2, at), key, value)
            output = output.index_add(2, at, share.to(part.dtype) * part)
        return output


class KnownText:
    """Positions read words whose keys and values are there already, `[B, T, C]` each, and nothing else is asked for.

    What a compiled block gets: it differs between layers and generations in the numbers of two tensors alone.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None
        self.attend: Attend = F.scaled_dot_product_attention

    @classmethod
    def of(cls, attention: Any, text: KeyValue, attend: Attend) -> KnownText:
        """A layer's own, the same one each time, with these keys and values."""
        found = _known.setdefault(attention, cls())
        found.key, found.value = text
        found.attend = attend
        return found

    def forget(self) -> None:
        """Let the text go."""
        self.key = self.value = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """`hidden_states` `[B, Q, C]` to `[B, Q, C]`; the text is not read."""
        assert self.key is not None and self.value is not None
        query, key, value = (split_heads(part, attn.heads) for part in (attn.to_q(hidden_states), self.key, self.value))
        return project_out(attn, self.attend(query, key, value))


_known: WeakKeyDictionary[Any, KnownText] = WeakKeyDictionary()


class SelfAttention:
    """Positions read those positions that they may see."""

    def __init__(
        self,
        layer: AttentionLayer,
        control: AttentionControl,
        captures: Sequence[Captured],
        attend: Attend = F.scaled_dot_product_attention,
    ) -> None:
        self.layer = layer
        self.control = control
        self.captures = captures
        self.attend = attend

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """`hidden_states` `[B, Q, C]` to `[B, Q, C]`."""
        assert encoder_hidden_states is None and attention_mask is None
        parts = project(attn, ("to_q", "to_k", "to_v"), hidden_states)
        query, key, value = (split_heads(part, attn.heads) for part in parts)
        grid = self.layer.grid(*self.control.size)
        if self.control.isolation is None:
            output = self.attend(query, key, value)
        else:
            output = region_attention(query, key, value, self.control.plan(grid, query.device), self.attend)
        for captured in self.captures:
            rows = captured.rows
            allowed = self.control.allowed(grid, query.device)
            captured.places[self.layer.name] = attention_map(query[rows], key[rows], allowed=allowed)
        return project_out(attn, output)


def _word_map(query: Tensor, key: Tensor, columns: Tensor, grid: tuple[int, int]) -> Tensor:
    """`[B, S, h, w]` of the words that `columns` picks."""
    return _on_grid(attention_map(query, key, columns.to(query.device)), grid)


def _on_grid(picked: Tensor, grid: tuple[int, int]) -> Tensor:
    """`[B, Q, S]` as `[B, S, h, w]`."""
    return picked.transpose(1, 2).unflatten(-1, grid)
