"""What a call costs beyond its arithmetic: tiny inputs, so that nearly all of the time is Python, dispatch and autograd.

A model makes some hundred calls in a pass, and 30 µs more for each are milliseconds. So eager mode calls plain functions and
autograd functions, and the operators of `torch.library` are for compilers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from studio.kernels import library
from studio.kernels.attention_with_map import attention_with_map, reference_attention_with_map
from studio.kernels.bench.case import Case, Run
from studio.kernels.gated import gated_gelu, reference_gated_gelu
from studio.kernels.joint_layout import JointLayout
from studio.kernels.joint_lora import joint_lora_linear, reference_lora_linear
from studio.kernels.joint_training import Part, joint_lora_training
from studio.kernels.kronecker import kronecker_linear, reference_kronecker_linear

TOKENS, WIDTH, RANK = 4, 16, 8


def call_cases(device: torch.device) -> Iterator[Case]:
    """Each op without gradients, and forward and backward."""
    for op, (inputs, plain, ours, operator) in _ops(device).items():
        for with_gradients in (False, True):
            leaves = [tensor.clone().requires_grad_(with_gradients) for tensor in inputs]
            base, own, registered = (_call(run, leaves, with_gradients) for run in (plain, ours, operator))
            arms = {"base": base, "base again": base, "ours": own, "operator": registered}
            yield Case(f"cost per call: {op}", "forward and backward" if with_gradients else "forward", arms, ())


_Op = tuple[list[Tensor], Callable[..., Any], Callable[..., Any], Callable[..., Any]]


def _ops(device: torch.device) -> dict[str, _Op]:
    """op -> (inputs, the plain path, what eager mode calls, the operator)."""
    x = torch.randn(TOKENS, WIDTH, device=device)
    layout = JointLayout(WIDTH, 1, (0,), RANK)
    rows, ups = torch.randn(layout.num_rows, WIDTH, device=device), torch.randn(1, WIDTH, RANK, device=device)
    weight, down, up = rows[:WIDTH], rows[WIDTH:].clone(), ups[0].clone()
    sides = [torch.randn(4, 4, device=device) for _ in range(2)]
    heads = [torch.randn(1, 2, TOKENS, WIDTH // 2, device=device) for _ in range(3)]
    columns = torch.eye(TOKENS, device=device)

    def lora(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return reference_lora_linear(x, weight, None, [(down, up, 1.0)])

    def joint(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return joint_lora_linear(x, rows, ups, layout)[0]
        return joint_lora_training(x, rows, ups, layout, None, ((Part(0, RANK, 1.0),),), (down, up), False)[0]

    def joint_operator(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return library.joint_lora(x, rows, ups, None, WIDTH, 1, [0])[:, :WIDTH]

    def mapped(run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda q, k, v: run(q, k, v, columns, 0.3)

    return {
        "LoRA": ([x, down, up], lora, joint, joint_operator),
        "GEGLU": ([x], reference_gated_gelu, gated_gelu, library.gated_gelu),
        "Kronecker": ([x, *sides], reference_kronecker_linear, kronecker_linear, library.kronecker_linear),
        "attention with map": (
            heads,
            mapped(reference_attention_with_map),
            mapped(attention_with_map),
            mapped(library.attention_with_map),
        ),
    }


def _call(run: Callable[..., Any], leaves: list[Tensor], with_gradients: bool) -> Run:
    if not with_gradients:
        return torch.no_grad()(lambda: run(*leaves))

    def both() -> None:
        outputs = run(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        targets = [torch.ones_like(output) for output in outputs]
        torch.autograd.grad(outputs, leaves, targets, allow_unused=True)

    return both
