"""Run by `test_triton.py` in a process of its own, where triton interprets: every kernel against the torch path."""

from __future__ import annotations

import torch

from studio.kernels import attention_with_map as attention
from studio.kernels import gated, joint_lora, kronecker, routed_lora, sparse_update
from studio.kernels.joint_layout import JointLayout
from studio.kernels.triton.attention_with_map import attention_with_map
from studio.kernels.triton.gated import gated_gelu
from studio.kernels.triton.joint_lora import joint_lora_linear
from studio.kernels.triton.kronecker import kronecker_linear
from studio.kernels.triton.routed_lora import routed_lora_
from studio.kernels.triton.sparse_update import sparse_adamw_

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3}


def close(ours: object, theirs: object, dtype: torch.dtype) -> None:
    torch.testing.assert_close(ours, theirs, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype], check_dtype=False)


def check_gated(dtype: torch.dtype) -> None:
    for shape in ((3, 10), (2, 5, 34)):
        projection = torch.randn(shape, dtype=dtype, requires_grad=True)
        ours, plain = gated_gelu(projection), gated.reference_gated_gelu(projection)
        close(ours, plain, dtype)
        target = torch.randn_like(plain)
        close(torch.autograd.grad(ours, projection, target), torch.autograd.grad(plain, projection, target), dtype)


def check_sparse(dtype: torch.dtype) -> None:
    weight, gradient = torch.randn(13, 7).to(dtype), torch.randn(13, 7).to(dtype)
    indices = torch.randperm(91)[:17].sort().values.to(torch.int32)
    states = [[weight.clone(), weight.flatten()[indices.long()].float(), torch.zeros(17), torch.zeros(17)] for _ in range(2)]
    options = sparse_update.AdamW(lr=1e-2, weight_decay=1e-2)
    for step in (1, 2, 3):
        for (own, *rest), run in zip(states, (sparse_adamw_, sparse_update.sparse_adamw_), strict=True):
            run(own, gradient, indices, *rest, step, options)
    for ours, theirs in zip(*states, strict=True):
        close(ours, theirs, dtype)


def check_routed(dtype: torch.dtype) -> None:
    masks = torch.rand(3, 45) * (torch.rand(3, 45) > 0.4)
    masks[1] = 0.0
    routes = routed_lora.TokenRoutes.make(masks)
    x, out = torch.randn(45, 70).to(dtype), torch.randn(45, 75).to(dtype)
    downs = [(0.1 * torch.randn(r, 70)).to(dtype) for r in (3, 16, 20)]
    ups = [torch.randn(75, r).to(dtype) for r in (3, 16, 20)]
    expected = routed_lora.reference_routed_lora(out, x, downs, ups, routes)
    close(routed_lora_(out.clone(), x, downs, ups, routes), expected, dtype)


def check_attention(dtype: torch.dtype) -> None:
    for length, words, depth in ((37, 13, 10), (5, 77, 40)):
        inputs = [torch.randn(2, 3, n, depth, dtype=dtype, requires_grad=True) for n in (length, words, words)]
        columns = torch.rand(words, 2)
        ours = attention_with_map(*inputs, columns, 0.3)
        plain = attention.reference_attention_with_map(*inputs, columns, 0.3)
        close(ours, plain, dtype)
        targets = [torch.randn_like(each) for each in plain]
        close(torch.autograd.grad(ours, inputs, targets), torch.autograd.grad(plain, inputs, targets), dtype)


def check_joint(dtype: torch.dtype) -> None:
    for active, rank, has_bias in (((0, 1, 2), 8, True), ((0, 2), 16, False), ((1,), 33, True)):
        layout = JointLayout(21, 3, active, rank)
        x = torch.randn(2, 35, 40).to(dtype)
        rows = (0.2 * torch.randn(layout.num_rows, 40)).to(dtype)
        ups = (0.2 * torch.randn(len(active), 21, rank)).to(dtype)
        bias = torch.randn(layout.num_rows).to(dtype) if has_bias else None
        expected = joint_lora.joint_lora_linear(x, rows, ups, layout, bias)
        close(joint_lora_linear(x, rows, ups, layout, bias), expected, dtype)


def check_kronecker(dtype: torch.dtype) -> None:
    for first, second in (((16, 16), (5, 7)), ((4, 3), (6, 40)), ((64, 4), (3, 10)), ((5, 20), (33, 4))):
        inputs = [torch.randn(3, 7, first[1] * second[1]), 0.2 * torch.randn(first), 0.2 * torch.randn(second)]
        inputs = [tensor.to(dtype).requires_grad_() for tensor in inputs]
        wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
        ours, theirs, exact = kronecker_linear(*inputs), kronecker.kronecker_linear(*inputs), kronecker.kronecker_linear(*wide)
        close(ours, theirs, dtype)
        target = torch.randn_like(theirs)
        found = [torch.autograd.grad(each, of, target.to(each)) for each, of in ((ours, inputs), (theirs, inputs), (exact, wide))]
        for own, plain, right in zip(*found, strict=True):
            assert (own - right).norm() <= 2.0 * (plain - right).norm() + 1e-6 * right.norm()


if __name__ == "__main__":
    for dtype in TOLERANCES:
        torch.manual_seed(0)
        for check in (check_joint, check_kronecker, check_gated, check_sparse, check_routed, check_attention):
            check(dtype)
            print(check.__name__, dtype)
    print("all as the torch path")
