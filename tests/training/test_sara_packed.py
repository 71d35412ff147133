"""Unstructured backpropagation on a plain torch model: gradients, switch, regularizer, the few-line use."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from studio.pipelines.errors import AdapterMismatchError, ConfigError
from studio.training import sara
from studio.training.sara.nuclear import NuclearNorm, nuclear_norm
from studio.training.sara.packed import PackedWeights
from studio.training.sara.selection import SelectionRule, select
from studio.training.sara.trainable import Progress, SaraTrainable

RULE = SelectionRule(density=0.3)


class Net(nn.Module):
    """Every kind of parameter: convolution, norms, embedding, a layer used twice, a tied weight, one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.embed = nn.Embedding(10, 8)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight
        self.idle = nn.Linear(4, 4)
        with torch.no_grad():
            self.norm.weight.add_(0.1 * torch.randn(8))
            self.norm.bias.add_(0.1 * torch.randn(8))
        self.checkpointing: bool | None = None

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        features = self._block(pixels) if self.checkpointing is None else self._checkpointed(pixels)
        return self.head(features + self.embed(words))

    def _block(self, pixels: Tensor) -> Tensor:
        features = self.norm(self.conv(pixels)).mean((2, 3))
        return self.twice(torch.tanh(self.twice(features)))

    def _checkpointed(self, pixels: Tensor) -> Tensor:
        answer: Tensor = checkpoint(self._block, pixels.requires_grad_(), use_reentrant=self.checkpointing)
        return answer


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(size: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 6, 6, generator=generator), torch.randint(0, 10, (size,), generator=generator)


def loss_of(net: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    answer: Tensor = net(*data)
    return answer.square().mean()


def packed_of(net: nn.Module) -> PackedWeights:
    return PackedWeights(select("model", net, RULE, None), [net])


@pytest.mark.parametrize("checkpointing", [None, False, True])
def test_the_packed_gradient_is_the_chosen_part_of_the_dense_one(net: Net, checkpointing: bool | None):
    dense = copy.deepcopy(net)
    loss_of(dense, batch()).backward()
    packed = packed_of(net.requires_grad_(False))
    net.checkpointing = checkpointing
    packed.attach()
    loss_of(net, batch()).backward()
    assert packed.delta.grad is not None
    for target in packed:
        gradient = dense.get_parameter(".".join(target.selected.path[1:]).lstrip(".")).grad
        expected = torch.zeros(len(target.original)) if gradient is None else gradient.flatten()[target.selected.indices.long()]
        torch.testing.assert_close(packed.delta.grad[target.part], expected, atol=1e-7, rtol=1e-5)
    names = {str(target.selected.path) for target in packed}
    assert {"model.norm.weight", "model.norm.bias", "model.conv.weight", "model.embed.weight"} <= names
    assert "model.head.weight" not in names  # it is the embedding's
    packed.detach()


def test_the_base_stays_itself_and_holds_no_gradients_and_no_masks(net: Net):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    expected = net(*batch())
    packed = packed_of(net.requires_grad_(False))
    packed.attach()
    assert torch.equal(net(*batch()), expected)
    loss_of(net, batch()).backward()
    assert {name for name, _ in net.named_parameters()} == {name for name, _ in Net().named_parameters()}
    assert all(type(p) is nn.Parameter and p.grad is None and not p.requires_grad for p in net.parameters())
    with torch.no_grad():
        packed.delta.add_(0.1)
    assert not torch.equal(net(*batch()), expected)
    packed.detach()
    assert torch.equal(net(*batch()), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any("weight" in module.__dict__ for module in net.modules())
    kept = [value for target in packed for value in (target.original, target.selected.indices)]
    assert max(tensor.numel() for tensor in kept) <= 0.31 * max(p.numel() for p in net.parameters())


def test_four_batches_of_one_are_one_batch_of_four(net: Net):
    net.norm = nn.Identity()  # nothing in it looks at the batch as a whole, but means differ in rounding
    packed = packed_of(net.requires_grad_(False))
    packed.attach()
    pixels, words = batch(4)
    loss_of(net, (pixels, words)).backward()
    assert packed.delta.grad is not None
    together = packed.delta.grad.clone()
    packed.delta.grad = None
    for row in range(4):
        (loss_of(net, (pixels[row : row + 1], words[row : row + 1])) / 4).backward()
    torch.testing.assert_close(packed.delta.grad, together, atol=1e-7, rtol=1e-4)


def test_clipping_acts(net: Net):
    """The reference's clipped tensors that have no gradient, so it never did."""
    steps = []
    for longest in (None, 0.1):
        model = copy.deepcopy(net).requires_grad_(False)
        packed = packed_of(model)
        packed.attach()
        (1000 * loss_of(model, batch())).backward()
        if longest is not None:
            assert torch.nn.utils.clip_grad_norm_(packed.parameters(), longest) > longest
        torch.optim.SGD(packed.parameters(), lr=1.0).step()
        steps.append(packed.delta.detach().norm())
    assert steps[0] > 1 and steps[1] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_are_the_rounded_master(net: Net, dtype: torch.dtype):
    net = net.to(dtype).requires_grad_(False)
    packed = packed_of(net)
    before = net.conv.weight.clone()
    packed.attach()
    assert torch.equal(net.conv.weight, before)
    assert packed.delta.dtype == torch.float32
    with torch.no_grad():
        packed.delta.add_(1e-3)
    packed.write()
    target = next(target for target in packed if target.selected.path.module == "conv")
    places = target.selected.indices.long()
    assert torch.equal(net.conv.weight.flatten()[places], (before.flatten()[places].float() + 1e-3).to(dtype))


def _after_steps(optimizer: torch.optim.Optimizer, packed: PackedWeights, net: nn.Module, steps: int) -> None:
    for seed in range(steps):
        loss_of(net, batch(seed=seed)).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", ["adamw", "fused", "sgd"])
def test_the_second_selection_settles_what_has_grown_and_damages_nothing(net: Net, kind: str):
    packed = packed_of(net.requires_grad_(False))
    make = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
        "fused": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, fused=True),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, weight_decay=0.1),
    }[kind]
    optimizer = make(list(packed.parameters()))
    packed.keep_settled_through(optimizer)
    packed.attach()
    _after_steps(optimizer, packed, net, 3)
    before, delta = net(*batch()), packed.delta.detach().clone()
    moments = {key: value.clone() for key, value in optimizer.state[packed.delta].items() if value is not None}
    num_moving = packed.reselect()
    assert 0 < num_moving < len(delta)
    assert torch.equal(net(*batch()), before)  # the reference writes |w| at the switch
    settled = torch.cat([packed.values(t).abs() >= t.selected.threshold for t in packed])
    assert int((~settled).sum()) == num_moving
    assert all(torch.equal(value, moments[key]) for key, value in optimizer.state[packed.delta].items() if value is not None)
    _after_steps(optimizer, packed, net, 3)
    assert torch.equal(packed.delta.detach()[settled], delta[settled])
    moved = packed.delta.detach()[~settled] != delta[~settled]
    assert moved.float().mean() > 0.8  # the layer that is not used has no gradients
    packed.reselect()
    assert packed.num_moving <= num_moving


def test_state_brings_back_what_is_settled(net: Net):
    packed = packed_of(net.requires_grad_(False))
    with torch.no_grad():
        packed.delta.copy_(torch.linspace(-0.3, 0.3, len(packed.delta)))
    packed.reselect()
    other = packed_of(net)
    other.load_state_dict({name: tensor.clone() for name, tensor in packed.state_dict().items()})
    assert other.num_moving == packed.num_moving < len(packed.delta)
    assert torch.equal(other.delta, packed.delta)


# -- the regularizer --------------------------------------------------------------------------------------------------------


def test_the_nuclear_norm_and_its_gradient():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(90, 70, generator=generator).requires_grad_()
    exact = nuclear_norm(matrix)
    torch.testing.assert_close(exact.detach(), torch.linalg.svdvals(matrix.detach()).sum(), rtol=1e-5, atol=1e-4)
    (gradient,) = torch.autograd.grad(exact, matrix)
    (expected,) = torch.autograd.grad(torch.linalg.matrix_norm(matrix, "nuc"), matrix)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)
    low = (torch.randn(90, 5, generator=generator) @ torch.randn(5, 70, generator=generator)).requires_grad_()
    sketched = nuclear_norm(low, rank=8, generator=generator)
    torch.testing.assert_close(sketched.detach(), torch.linalg.svdvals(low.detach()).sum(), rtol=1e-4, atol=1e-3)
    assert nuclear_norm(torch.zeros(4, 4)) == 0


@pytest.mark.parametrize("rank", [0, 16])
def test_the_regularizer_acts_on_the_masked_weights(rank: int):
    """The reference's ends in tensors that nobody reads: with it and without it, training was the same to the bit."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(80, 72), nn.Linear(72, 10)).requires_grad_(False)
    packed = packed_of(net)
    norm = NuclearNorm(weight=1e-2, every=2, tensors="all", rank=rank, smallest_side=64)
    assert norm.term([packed], 1, 0) is None
    term = norm.term([packed], 2, 0)
    assert term is not None
    term.backward()
    target = next(iter(packed))
    masked = torch.zeros(72 * 80)
    masked[target.selected.indices.long()] = target.original
    expected = torch.linalg.svdvals(masked.view(72, 80))[: rank or None].sum()
    assert float(term.detach()) == pytest.approx(1e-2 * 2 * float(expected), rel=0.02)
    assert packed.delta.grad is not None
    assert packed.delta.grad[target.part].norm() > 0  # the small matrix does not count: its shorter side is 10
    assert packed.delta.grad[target.end :].norm() == 0
    with torch.no_grad():
        packed.delta -= 0.5 * packed.delta.grad
    smaller = norm.term([packed], 2, 0)
    assert smaller is not None and smaller < term
    assert NuclearNorm(weight=0.0).term([packed], 0, 0) is None


def test_the_same_step_and_seed_choose_the_same_matrix():
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(66, 66) for _ in range(6)]).requires_grad_(False)
    packed = packed_of(net)
    norm = NuclearNorm(every=1)
    terms = [[float(norm.term([packed], step, seed).detach()) for step in range(8)] for seed in (0, 0, 1)]
    assert terms[0] == terms[1] != terms[2]
    assert len(set(terms[0])) > 2


def test_the_trainable_adds_the_term_when_it_is_due_and_a_restored_one_goes_on_counting():
    torch.manual_seed(0)
    net = nn.Linear(80, 72).requires_grad_(False)
    norm = NuclearNorm(weight=0.1, every=2)
    make = lambda seed: SaraTrainable({"denoiser": packed_of(net)}, {"denoiser": 1.0}, norm, Progress(), seed)  # noqa: E731
    trainable = make(3)
    moved = []
    for with_term in (False, True):
        (packed,) = trainable.packed
        packed.delta.grad = None
        with trainable.active():
            loss = net(torch.ones(2, 80)).square().mean()
            term = trainable.regularizer()
            assert term is not None
            (loss + term if with_term else loss).backward()
        assert packed.delta.grad is not None
        moved.append(packed.delta.grad.clone())
    assert not torch.equal(*moved)
    trainable.on_step(1)
    assert trainable.regularizer() is None
    other = make(4)
    other.load_state_dict({name: tensor.clone() for name, tensor in trainable.state_dict().items()})
    assert other.regularizer() is None
    other.on_step(2)
    assert other.regularizer() is not None


# -- the few-line use -------------------------------------------------------------------------------------------------------


def test_the_few_lines(net: Net, tmp_path: Path):
    fresh, other = copy.deepcopy(net), Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer = sara.AdamW(net, density=0.3, lr=0.01, switch_step=3, nuclear=NuclearNorm(smallest_side=2, every=2))
    losses = []
    for _ in range(8):
        loss = loss_of(net, batch()) + optimizer.regularizer()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([optimizer.weights.delta], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss_of(net, batch()).item())
    assert losses[-1] < 0.9 * losses[0]
    assert optimizer.weights.num_moving < len(optimizer.weights.delta)
    trained = net(*batch())
    optimizer.save(tmp_path / "change.safetensors", dtype=torch.float32)
    optimizer.close()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    sara.load_into(fresh, tmp_path / "change.safetensors")
    assert torch.equal(fresh(*batch()), trained)
    with pytest.raises(AdapterMismatchError, match=r"fit model\.conv\.\w+\. It changes single weights of the base model"):
        sara.load_into(other, tmp_path / "change.safetensors")


def test_keeping_the_weights_and_the_papers_rate():
    torch.manual_seed(0)
    net = nn.Linear(50, 50)
    before = net.weight.detach().clone()
    with sara.AdamW(net, threshold=2e-3) as optimizer:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(4.966e-4, rel=1e-3)
        net(torch.randn(3, 50)).square().mean().backward()
        optimizer.step()
        optimizer.keep()
    changed = net.weight != before
    assert changed.any() and (before[changed].abs() < 2e-3).all()
    assert isinstance(net.weight, nn.Parameter) and net.weight.requires_grad


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "give one of the two"),
        ({"threshold": 1e-3, "density": 0.1}, "give one of the two"),
        ({"density": 0.1}, "give lr"),
        ({"threshold": 1e-12}, "no weight of the model is below"),
        ({"threshold": 1e-3, "targets": "nothing"}, "has a name that matches"),
        ({"density": 2.0, "lr": 1.0}, "between 0 and 1"),
        ({"threshold": -1.0}, "use a positive one"),
    ],
)
def test_mistakes_are_sentences(net: Net, settings: dict[str, object], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        sara.AdamW(net, **settings)
