"""A matrix or kernel inside a patch: stored in full, as a product of low rank, or in Tucker form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.pipelines.errors import AdapterMismatchError


@dataclass(frozen=True, eq=False)
class Factor:
    """A matrix or kernel, or what makes one.

    Attributes:
        full: `[m, n]` or `[m, n, kh, kw]`; None if it is decomposed.
        a, b: low rank, `[m, r]` and `[r, n]` or `[r, n, kh, kw]`; with `core`, `[r, m]` and `[r, n]`.
        core: Tucker core `[r, r, kh, kw]`.
    """

    full: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    core: Tensor | None = None

    def __post_init__(self) -> None:
        if self.full is not None:
            assert self.a is None and self.b is None and self.core is None
            fits = self.full.ndim in (2, 4)
        else:
            assert self.a is not None and self.b is not None
            rank_axis = 1 if self.core is None else 0
            fits = self.a.ndim == 2 and self.b.ndim in (2, 4) and self.a.shape[rank_axis] == self.b.shape[0]
            if self.core is not None:
                fits = fits and self.b.ndim == 2 and self.core.ndim == 4 and self.core.shape[:2] == (len(self.a), len(self.b))
        if not fits:
            shapes = [list(tensor.shape) for tensor in self.tensors().values()]
            raise AdapterMismatchError(f"The parts of a factor do not fit together: {shapes}.")

    @property
    def rank(self) -> int | None:
        """r of a decomposed factor; None of a full one."""
        return None if self.b is None else self.b.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix or kernel."""
        if self.full is not None:
            return tuple(self.full.shape)
        assert self.a is not None and self.b is not None
        if self.core is not None:
            return (self.a.shape[1], self.b.shape[1], *self.core.shape[2:])
        return (self.a.shape[0], *self.b.shape[1:])

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by suffix: "" for a full one, "_a", "_b" and "_core"."""
        named = {"": self.full, "_a": self.a, "_b": self.b, "_core": self.core}
        return {suffix: tensor for suffix, tensor in named.items() if tensor is not None}

    def value(self) -> Tensor:
        """The matrix or kernel, in the tensors' type."""
        if self.full is not None:
            return self.full
        assert self.a is not None and self.b is not None
        if self.core is not None:
            return torch.einsum("ijkl,ip,jq->pqkl", self.core, self.a, self.b).contiguous()
        return (self.a @ self.b.flatten(1)).reshape(self.shape)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Factor:
        """The same factor elsewhere or in another type."""
        moved = (None if tensor is None else tensor.to(device, dtype) for tensor in (self.full, self.a, self.b, self.core))
        return Factor(*moved)


def widest_type(tensors: Iterable[Tensor]) -> torch.dtype:
    """float32, or the widest of the tensors' types if wider."""
    wide = torch.float32
    for tensor in tensors:
        wide = torch.promote_types(wide, tensor.dtype)
    return wide
