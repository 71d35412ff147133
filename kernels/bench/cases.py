"""What `studio bench kernels` times: each op against its reference on one device, with the bar that it is held to.

Needs torch alone, so that the same cases run on a GPU machine: `python -m studio.kernels.bench --device cuda`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.kernels.attention_with_map import attention_with_map, reference_attention_with_map
from studio.kernels.bench.calls import call_cases
from studio.kernels.bench.case import Bar, Case, Run
from studio.kernels.bench.lycoris import lycoris_cases
from studio.kernels.gated import gated_gelu, reference_gated_gelu
from studio.kernels.joint_layout import JointLayout
from studio.kernels.joint_lora import joint_lora_linear, reference_lora_linear
from studio.kernels.kronecker import kronecker_linear, reference_kronecker_linear
from studio.kernels.routed_lora import TokenRoutes, masked_lora_, reference_routed_lora
from studio.kernels.sparse_update import AdamW, adamw_, sparse_adamw_

ATTENTION_SHAPES = ((4096, 320), (1024, 640), (256, 1280), (1024, 1280))
NEAR_SQUARE = {320: (16, 20), 640: (16, 40), 1280: (32, 40)}


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """All of them, one at a time: each takes memory."""
    yield from _attention_cases(device, dtype)
    yield from _kronecker_cases(device, dtype)
    yield _routed_case(device, dtype)
    yield from _joint_cases(device, dtype)
    yield _gated_case(device, dtype)
    if dtype == torch.float32:
        yield _sparse_case(device)
        yield from call_cases(device)
    if device.type == "cuda":
        yield from lycoris_cases(device, dtype)


def _attention_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for heads, length, depth, most in ((8, 4096, 40, 1.06), (8, 1024, 80, None), (10, 4096, 64, None)):
        query, key, value = (_random(1, n, heads, depth, device=device, dtype=dtype).transpose(1, 2) for n in (length, 77, 77))
        columns = torch.eye(77, device=device)[:, :4].contiguous()
        base = _bound(F.scaled_dot_product_attention, query, key, value)
        bars = (Bar("ours", "naive", most=1.0),) if most else ()
        if most and dtype == torch.float32:
            bars = (Bar("ours", "base", most=most), *bars)

        def results(q: Tensor = query, k: Tensor = key, v: Tensor = value) -> tuple[Tensor, Tensor, Tensor]:
            return (
                attention_with_map(q, k, v)[1],
                reference_attention_with_map(q, k, v)[1],
                reference_attention_with_map(q.double(), k.double(), v.double())[1],
            )

        arms = {
            "base": base,
            "base again": base,
            "ours": _bound(attention_with_map, query, key, value, columns),
            "naive": _bound(reference_attention_with_map, query, key, value, columns),
        }
        yield Case("attention with map", f"{length}×77, {heads} heads, d {depth}", arms, bars, results)


def _kronecker_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for tokens, width in ATTENTION_SHAPES:
        x, weight = _random(tokens, width, device=device, dtype=dtype), _random(width, width, device=device, dtype=dtype)
        sides = NEAR_SQUARE[width]
        first = _random(*(sides[0],) * 2, device=device, dtype=dtype)
        second = _random(*(sides[1],) * 2, device=device, dtype=dtype)
        tall = _random(64, 4, device=device, dtype=dtype)
        rest = _random(width // 64, width // 4, device=device, dtype=dtype)
        base = _bound(F.linear, x, weight)
        limit = 0.35 if dtype == torch.float32 else 0.5
        arms = {
            "base": base,
            "base again": base,
            "ours": _bound(kronecker_linear, x, first, second),
            "materialised": _bound(reference_kronecker_linear, x, first, second),
            "64×4 ours": _bound(kronecker_linear, x, tall, rest),
            "64×4 in DiffuseKronA's order": _bound(_small_factor_first, x, tall, rest),
        }
        bars = (
            Bar("ours", "materialised", most=limit),
            Bar("64×4 in DiffuseKronA's order", "64×4 ours", least=6.0),
        )

        def results(x: Tensor = x, a: Tensor = first, b: Tensor = second) -> tuple[Tensor, Tensor, Tensor]:
            exact = reference_kronecker_linear(x.double(), a.double(), b.double())
            return kronecker_linear(x, a, b), reference_kronecker_linear(x, a, b), exact

        yield Case("Kronecker", f"{tokens}×{width}, {sides[0]}⊗{sides[1]}", arms, bars, results)


def _small_factor_first(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """As DiffuseKronA's published code contracts: the small factor first, with a long row of numbers for every token."""
    (a_out, a_in), b_in = first.shape, second.shape[1]
    mixed = torch.matmul(first, x.reshape(-1, a_in, b_in))
    return F.linear(mixed, second).reshape(len(x), a_out * len(second))


def _routed_case(device: torch.device, dtype: torch.dtype) -> Case:
    tokens, width, rank, num = 4096, 320, 16, 4
    x, weight = _random(tokens, width, device=device, dtype=dtype), _random(width, width, device=device, dtype=dtype)
    downs = [_random(rank, width, device=device, dtype=dtype) for _ in range(num)]
    ups = [_random(width, rank, device=device, dtype=dtype) for _ in range(num)]
    routes = TokenRoutes.make(_boxes(64).flatten(1).to(device))
    all_downs, all_ups = torch.cat(downs), torch.cat(ups, dim=1)
    factor = routes.masks.repeat_interleave(rank, dim=1).to(dtype)
    out = torch.zeros(tokens, width, device=device, dtype=dtype)
    base = _bound(F.linear, x, weight)

    def results() -> tuple[Tensor, Tensor, Tensor]:
        zero = torch.zeros_like(out)
        wide_downs, wide_ups = ([factor.double() for factor in part] for part in (downs, ups))
        return (
            masked_lora_(zero.clone(), x, all_downs, all_ups, factor),
            reference_routed_lora(zero, x, downs, ups, routes),
            reference_routed_lora(zero.double(), x.double(), wide_downs, wide_ups, routes),
        )

    arms = {
        "base": base,
        "base again": base,
        "ours": _bound(masked_lora_, out, x, all_downs, all_ups, factor),
        "naive": _bound(reference_routed_lora, out, x, downs, ups, routes),
    }
    bars = (Bar("ours", "base", most=0.5),) if dtype == torch.float32 else ()
    return Case("four LoRAs by region", f"{tokens}×{width}, r {rank}", arms, bars, results)


def _boxes(side: int) -> Tensor:
    reach = round(side * 0.547)
    masks = torch.zeros(4, side, side)
    for index, mask in enumerate(masks):
        rows = slice(0, reach) if index < 2 else slice(side - reach, side)
        mask[rows, slice(0, reach) if index % 2 == 0 else slice(side - reach, side)] = 1.0
    return masks / masks.sum(dim=0)


def _joint_cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    for tokens, width in ATTENTION_SHAPES:
        rank, num = 16, 8
        x = _random(tokens, width, device=device, dtype=dtype)
        layout = JointLayout(width, 3, (0, 1, 2), rank * num)
        rows = _random(layout.num_rows, width, device=device, dtype=dtype)
        ups = _random(3, width, rank * num, device=device, dtype=dtype)
        weights = [rows[layout.columns(layer)] for layer in range(3)]
        adapters = [
            [
                (rows[layout.inner(layer)][i * rank :][:rank].contiguous(), ups[layer][:, i * rank :][:, :rank].contiguous(), 1.0)
                for i in range(num)
            ]
            for layer in range(3)
        ]

        def base(x: Tensor = x, weights: list[Tensor] = weights) -> list[Tensor]:
            return [F.linear(x, weight) for weight in weights]

        def chain(x: Tensor = x, weights: list[Tensor] = weights, adapters: Any = adapters) -> list[Tensor]:
            return [reference_lora_linear(x, weight, None, own) for weight, own in zip(weights, adapters, strict=True)]

        def results(x: Tensor = x, r: Tensor = rows, u: Tensor = ups, own: JointLayout = layout, plain: Run = chain) -> Any:
            return joint_lora_linear(x, r, u, own)[0], plain()[0], joint_lora_linear(x.double(), r.double(), u.double(), own)[0]

        arms = {
            "base": base,
            "base again": base,
            "ours": _bound(joint_lora_linear, x, rows, ups, layout),
            "one after the other": chain,
        }
        bars = (Bar("ours", "base", most=1.15),) if device.type == "cuda" else ()
        yield Case("q, k, v with 8 LoRAs", f"{tokens}×{width}, r 8·16", arms, bars, results)


def _gated_case(device: torch.device, dtype: torch.dtype) -> Case:
    projection = _random(1024, 10240, device=device, dtype=dtype).requires_grad_()
    target = _random(1024, 5120, device=device, dtype=dtype)

    def both(run: Callable[[Tensor], Tensor]) -> Run:
        return lambda: torch.autograd.grad(run(projection), projection, target)

    def results() -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            return gated_gelu(projection), reference_gated_gelu(projection), reference_gated_gelu(projection.double())

    base = both(reference_gated_gelu)
    moved = projection.element_size() * (projection.numel() * 3 + target.numel() * 2)
    arms = {"base": base, "base again": base, "ours": both(gated_gelu)}
    return Case("GEGLU, both ways", "1024×10240", arms, (), results, moved)


def _sparse_case(device: torch.device) -> Case:
    num, density, options = 20_000_000, 0.1, AdamW(lr=1e-4, weight_decay=1e-2)
    weight, gradient = _random(num, device=device), _random(num, device=device)
    chosen = (torch.rand(num, device=device) < density).nonzero().flatten().to(torch.int32)
    mask = torch.zeros(num, device=device)
    mask[chosen.long()] = 1.0
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    packed = [weight[chosen.long()].clone(), *(torch.zeros(len(chosen), device=device) for _ in range(2))]

    def dense() -> None:
        gradient.mul_(mask)
        adamw_(weight, gradient, mean, square, 1, options)

    def sparse() -> None:
        sparse_adamw_(weight, gradient, chosen, packed[0], packed[1], packed[2], 1, options)

    arms = {"base": dense, "base again": dense, "ours": sparse}
    bars = (Bar("ours", "base", most=0.6),)
    return Case("sparse AdamW against masked", "20 M weights, 10 %", arms, bars, None, 36 * len(chosen))


def _bound(run: Callable[..., Any], *arguments: Any) -> Run:
    return lambda: run(*arguments)


def _random(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)
