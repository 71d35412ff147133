"""Times the sparse AdamW step against dense AdamW with a mask: `python -m studio.kernels.bench.sparse_update`.

The baseline multiplies the gradient by a 0/1 mask of floats, the quickest form, and runs torch's fused AdamW on all weights;
"bool mask" is the same with a mask of one byte a weight, as one would keep it. The mask's bytes are not counted against
either. The arms take turns in every round, in process CPU time on one thread; what counts is the median of the rounds'
ratios. The control row is the baseline against itself: outside 0.97…1.03 the machine was too busy for the table to mean
anything.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from studio.kernels.sparse_index import indices_below
from studio.kernels.sparse_update import AdamW, adamw_, sparse_adamw_, state_bytes

Arm = Callable[[], None]
OPTIONS = AdamW(lr=1e-4, weight_decay=1e-2)
TARGETS = {0.10: (0.6, 0.2), 0.01: (0.25, 0.02)}
"""Density -> (largest ratio of time, largest ratio of optimizer bytes)."""


def arms(num_weights: int, density: float, seed: int = 0) -> tuple[dict[str, Arm], dict[str, int]]:
    """The arms of one density, and the bytes that each one's optimizer holds besides weights, gradients and masks."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_weights, generator=generator)
    gradient = torch.randn(num_weights, generator=generator)
    threshold = float(torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.5 + density / 2)))
    indices = indices_below(weight, threshold)
    mask = torch.zeros(num_weights)
    mask[indices.long()] = 1.0
    bool_mask = mask.bool()
    mean, square = torch.zeros(num_weights), torch.zeros(num_weights)
    packed = [weight[indices.long()].clone(), torch.zeros(len(indices)), torch.zeros(len(indices))]

    def dense() -> None:
        gradient.mul_(mask)
        adamw_(weight, gradient, mean, square, 1, OPTIONS)

    def dense_bool() -> None:
        gradient.mul_(bool_mask)
        adamw_(weight, gradient, mean, square, 1, OPTIONS)

    def sparse() -> None:
        sparse_adamw_(weight, gradient, indices, packed[0], packed[1], packed[2], 1, OPTIONS)

    full_bytes = state_bytes(mean, square)
    sparse_bytes = state_bytes(packed[1], packed[2], indices)
    sizes = {"dense": full_bytes, "control": full_bytes, "bool mask": full_bytes, "sparse": sparse_bytes}
    return {"dense": dense, "control": dense, "bool mask": dense_bool, "sparse": sparse}, sizes


def measure(entries: dict[str, Arm], rounds: int) -> dict[str, list[float]]:
    """Process CPU seconds of every arm in every round; the order turns with the rounds."""
    for arm in entries.values():
        arm()
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    names = list(entries)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.process_time()
            entries[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def ratios(seconds: dict[str, list[float]], baseline: str = "dense") -> dict[str, float]:
    """Median over the rounds of each arm's time divided by the baseline's of the same round."""
    pairs = {name: zip(times, seconds[baseline], strict=True) for name, times in seconds.items()}
    return {name: statistics.median(own / base for own, base in rows) for name, rows in pairs.items()}


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m studio.kernels.bench.sparse_update", description=__doc__)
    parser.add_argument("--millions", type=float, default=20.0, help="number of weights")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("| density | arm | min ms | time ÷ masked dense | target | optimizer bytes ÷ dense | target |")
    print("|---|---|---|---|---|---|---|")
    for density, (time_target, bytes_target) in TARGETS.items():
        entries, sizes = arms(int(options.millions * 1e6), density)
        seconds = measure(entries, options.rounds)
        table = ratios(seconds)
        goals = {"control": ("0.97…1.03", ""), "bool mask": ("", ""), "sparse": (f"≤ {time_target}", f"≤ {bytes_target}")}
        for name, targets in goals.items():
            share = sizes[name] / sizes["dense"]
            best = 1e3 * min(seconds[name])
            print(f"| {density:.0%} | {name} | {best:.1f} | {table[name]:.3f} | {targets[0]} | {share:.4f} | {targets[1]} |")


if __name__ == "__main__":
    main()
