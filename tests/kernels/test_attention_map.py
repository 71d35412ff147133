"""Head-averaged attention maps: the plain formula's numbers and gradients, with one head's scores in memory at a time."""

import pytest
import torch

from studio.kernels.attention_map import attention_map, attention_map_reference
from studio.kernels.bench.counting import count


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


COLUMNS = {
    "all": None,
    "tokens": torch.eye(7, dtype=torch.float64)[:, [2, 5]],
    "per row": torch.rand(2, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
}
ALLOWED = {"everything": None, "some": torch.tril(torch.ones(6, 7, dtype=torch.bool), diagonal=1)}


@pytest.mark.parametrize("columns", COLUMNS.values(), ids=COLUMNS)
@pytest.mark.parametrize("allowed", ALLOWED.values(), ids=ALLOWED)
def test_numbers_and_gradients(columns: torch.Tensor | None, allowed: torch.Tensor | None):
    query, key = numbers(2, 3, 6, 4).requires_grad_(), numbers(2, 3, 7, 4, seed=1).requires_grad_()
    torch.testing.assert_close(attention_map(query, key, columns, allowed), attention_map_reference(query, key, columns, allowed))
    assert torch.autograd.gradcheck(lambda q, k: attention_map(q, k, columns, allowed), (query, key))


@pytest.mark.parametrize("needed", ["query", "key"])
def test_only_the_gradient_that_is_needed(needed: str):
    query, key = numbers(1, 2, 5, 4), numbers(1, 2, 6, 4, seed=1)
    wanted = {"query": query, "key": key}[needed].requires_grad_()
    (ours,) = torch.autograd.grad(attention_map(query, key).square().sum(), wanted)
    (theirs,) = torch.autograd.grad(attention_map_reference(query, key).square().sum(), wanted)
    torch.testing.assert_close(ours, theirs)


def test_all_columns_sum_to_one_also_in_half_precision():
    query, key = numbers(1, 4, 9, 8, dtype=torch.bfloat16), numbers(1, 4, 7, 8, seed=1, dtype=torch.bfloat16)
    maps = attention_map(30 * query, key)
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(-1), torch.ones(1, 9))


def test_scores_of_all_heads_are_never_kept():
    """At the size of a 32×32 level of SD1.5: 8 heads, 1024 positions, 77 tokens, the map of one of them."""
    query = torch.empty(1, 8, 1024, 80, device="meta", requires_grad=True)
    key = torch.empty(1, 8, 77, 80, device="meta", requires_grad=True)
    columns = torch.empty(77, 1, device="meta")
    saved = {
        name: count(lambda function=function: function(query, key, columns), not_kept=[query, key]).kept_bytes
        for name, function in {"ours": attention_map, "plain": attention_map_reference}.items()
    }
    scores = 8 * 1024 * 77 * 4
    assert saved["ours"] == columns.numel() * 4
    assert saved["plain"] >= scores
