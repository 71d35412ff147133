"""Which library computes the attention: torch's own, or another that really can, here and now.

diffusers' own switch for this does nothing on UNets, and a package that is installed may still lack kernels for the device. So
the attention's processor is ours, and a library counts as available after a tiny call on the very device has computed the
right numbers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.pipelines.adapters.projections import PLAIN_PROCESSOR, Attend, PatchedAttention, plain_attentions
from studio.pipelines.errors import UserError

BackendName = Literal["auto", "sdpa", "flex", "xformers"]
NAMES: tuple[BackendName, ...] = get_args(BackendName)

ENVIRONMENT = "STUDIO_ATTENTION"
"""The variable that names the backend for this process, and for those that it starts."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Backend:
    """What computes the attention.

    Attributes:
        name: "sdpa", "flex" or "xformers". attend: the function; None for torch's own.
        note: why it is not the one asked for; empty if it is.
    """

    name: str
    attend: Attend | None = None
    note: str = ""


def choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend called `name` if it computes on this device, and else torch's own with a note.

    "auto" is torch's own: its kernels are those of the others, or newer ones.

    Raises:
        UserError: there is no backend of that name.
    """
    check_name(name)
    if name in ("auto", "sdpa"):
        return Backend("sdpa")
    reason = why_not(name, device, dtype)
    if not reason:
        return Backend(name, _with_a_way_back(name, device, dtype))
    note = f"{name} attention is not available here ({reason}); torch's own is used."
    return Backend("sdpa", None, note)


def check_name(name: str) -> None:
    """`UserError` if there is no backend of that name."""
    if name not in NAMES:
        raise UserError(f"There is no attention backend {name!r}; choose one of {', '.join(NAMES)}.")


def use_wanted_attention(unet: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Let a UNet that was just loaded compute with the backend that the environment names; a line says why, if it cannot.

    Raises:
        UserError: there is no backend of that name.
    """
    backend = choose_attention(os.environ.get(ENVIRONMENT) or "auto", device, dtype)
    if backend.note:
        log.warning("%s", backend.note)
    for attention in plain_attentions(unet) if backend.attend is not None else ():
        attention.__dict__["processor"] = PatchedAttention(attention.processor, backend.attend)


@cache
def why_not(name: str, device: torch.device, dtype: torch.dtype, *, gradients: bool = False) -> str:
    """Why a backend cannot be used with such tensors; empty if a tiny call computed what torch's own computes.

    Args:
        gradients: of the way back, instead of the way there.
    """
    attend = _attend_named(name)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, 16, 40, generator=generator).to(device, dtype).requires_grad_(gradients) for _ in range(3)]
    found: list[Tensor] = []
    expected: list[Tensor] = []
    try:
        with torch.set_grad_enabled(gradients), torch.inference_mode(False):
            for run, results in ((attend, found), (F.scaled_dot_product_attention, expected)):
                output = run(*inputs)
                results += torch.autograd.grad(output.float().sum(), inputs) if gradients else [output]
    except Exception as error:  # whatever a foreign library throws when it cannot
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'it cannot run here'}"
    if not all(torch.allclose(a.float(), b.float(), atol=3e-2, rtol=3e-2) for a, b in zip(found, expected, strict=True)):
        return "a tiny call gave other numbers than torch's own"
    return ""


def _with_a_way_back(name: str, device: torch.device, dtype: torch.dtype) -> Attend:
    """The backend's function; where gradients are asked for and it has none, torch's own, and one line says so."""
    attend = _attend_named(name)

    def with_gradients(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (query, key, value)):
            return attend(query, key, value)
        reason = why_not(name, device, dtype, gradients=True)
        if not reason:
            return attend(query, key, value)
        _say_once(f"{name} attention has no gradients here ({reason}); torch's own is used where they are needed.")
        return F.scaled_dot_product_attention(query, key, value)

    return with_gradients


@cache
def _say_once(line: str) -> None:
    log.warning("%s", line)


def _attend_named(name: str) -> Attend:
    return {"flex": _flex, "xformers": _xformers}[name]


@contextmanager
def attention_backend(unet: nn.Module, backend: Backend) -> Iterator[None]:
    """Inside the block the UNet's plain attention layers compute with `backend`; afterwards as before."""
    with ExitStack() as restore:
        for attention in plain_attentions(unet) if backend.attend is not None else ():
            present = attention.__dict__["processor"]
            plain = present if type(present).__name__ == PLAIN_PROCESSOR else present.plain
            restore.callback(attention.__dict__.__setitem__, "processor", present)
            attention.__dict__["processor"] = PatchedAttention(plain, backend.attend)
        yield


def attend_of(attention: Any) -> Attend:
    """What computes the attention of one layer without a mask."""
    chosen = getattr(attention.processor, "attend", None)
    return F.scaled_dot_product_attention if chosen is None else chosen


def _xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention

    result: Tensor = memory_efficient_attention(*(tensor.transpose(1, 2) for tensor in (query, key, value)))
    return result.transpose(1, 2)


def _flex(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    result: Tensor = _compiled_flex()(query, key, value)
    return result


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)
