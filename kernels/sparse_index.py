"""Sets of positions in a flattened tensor: which weights are small, and how such a set is stored in few bytes.

Positions are sorted int32 numbers into the tensor in its logical (row-major) order, so a tensor has fewer than 2³¹ entries.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_TENSOR = 2**31 - 1


def indices_below(weight: Tensor, threshold: float) -> Tensor:
    """Positions with |w| < threshold, `[k]` int32, sorted; compared in float32, whatever type the weight has.

    Raises:
        ValueError: the tensor has more entries than int32 can count.
    """
    flat = weight.detach().reshape(-1)
    if flat.numel() > LARGEST_TENSOR:
        raise ValueError(f"a tensor of {flat.numel()} entries is too large for int32 positions.")
    return (flat.to(torch.float32).abs() < threshold).nonzero().flatten().to(torch.int32)


def threshold_of_share(weight: Tensor, share: float) -> float:
    """θ such that |w| < θ holds for `share` of the entries (0 < share ≤ 1), or for fewer where values are equal."""
    magnitudes = weight.detach().reshape(-1).to(torch.float32).abs()
    count = max(1, round(share * magnitudes.numel()))
    if count >= magnitudes.numel():
        return float(torch.nextafter(magnitudes.max(), torch.tensor(torch.inf, device=magnitudes.device)))
    return float(magnitudes.kthvalue(count + 1).values)


def encode_gaps(indices: Tensor, largest: int = 255) -> Tensor:
    """Sorted positions as the gaps between them, in digits of 0…`largest`: about one byte each at a density of a few per cent.

    The number of positions left out before each one is written as digits to be summed: `largest` means that another digit
    follows. Every such sequence stands for exactly one sorted set without repetitions.

    Args:
        indices: `[k]`, sorted and without repetitions.
        largest: 255 or 65535.

    Returns:
        `[≥ k]` uint8, or int32 digits (for uint16, see `pack_gaps`) when `largest` is more than 255.
    """
    positions = indices.to(torch.int64)
    before = torch.cat([positions.new_full((1,), -1), positions[:-1]])
    gaps = positions - before - 1
    num_full = gaps // largest
    ends = (num_full + 1).cumsum(0) - 1
    length = int(ends[-1]) + 1 if len(ends) else 0
    digits = torch.full((length,), largest, dtype=torch.int32, device=indices.device)
    digits[ends] = (gaps - num_full * largest).to(torch.int32)
    return digits.to(torch.uint8) if largest == 255 else digits


def decode_gaps(digits: Tensor, largest: int) -> Tensor:
    """What `encode_gaps` wrote, as int64 `[k]`; sorted and without repetitions whatever the digits are.

    Raises:
        ValueError: the last digit announces another one, which is not there.
    """
    numbers = digits.to(torch.int64)
    if len(numbers) and int(numbers[-1]) == largest:
        raise ValueError("its positions end in the middle of one.")
    is_end = numbers != largest
    sums = numbers.cumsum(0)[is_end]
    return sums + torch.arange(len(sums), device=digits.device)


def pack_gaps(indices: Tensor) -> Tensor:
    """Gap digits as uint8 or uint16, whichever is fewer bytes for this set."""
    narrow, wide = encode_gaps(indices, 255), encode_gaps(indices, 65535)
    return narrow if len(narrow) <= 2 * len(wide) else wide.to(torch.uint16)


def unpack_gaps(digits: Tensor) -> Tensor:
    """The positions of `pack_gaps`, int64 `[k]`; ValueError if the digits are none."""
    if digits.dtype not in (torch.uint8, torch.uint16) or digits.ndim != 1:
        raise ValueError(f"its positions are {digits.dtype} of shape {list(digits.shape)}, not bytes or 16-bit digits in a row.")
    return decode_gaps(digits, 255 if digits.dtype is torch.uint8 else 65535)
