"""LoRAs inside the layers' own product, in the engine: the plain path's numbers, and a model that is itself again afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from studio.pipelines.adapters import Adapter, AdapterInfo, FullPatch, ParameterPath, Route, new_lora, patched
from studio.pipelines.adapters.joint_site import JointSite
from studio.pipelines.adapters.patching import ResolvedRoutes
from tests.support.adapters import TINY_MODELS, mixed_ranks, random_adapter, random_kronecker
from tests.support.outputs import assert_equal, assert_same, fingerprint, outputs
from tests.support.tiny_models import TinyModel, tiny_embedded, tiny_sd15

ATTENTION = {"unet": r".*attn\d\.to_(q|k|v|out\.0)"}


@pytest.fixture
def model() -> TinyModel:
    return tiny_embedded()


def both_ways(model: TinyModel, routes: list[Route], monkeypatch: pytest.MonkeyPatch, batch: int = 2) -> tuple[list[Tensor], ...]:
    """Outputs with the joint product, and by the plain path."""
    found = []
    for path in ("auto", "plain"):
        monkeypatch.setenv("STUDIO_KERNELS", path)
        resolved = ResolvedRoutes(model.components(), routes)
        with resolved.open():
            assert bool(resolved._sites) is (path == "auto")
            found.append(outputs(model, batch))
    return tuple(found)


@pytest.mark.parametrize("family", TINY_MODELS)
def test_one_adapter_and_several(family: str, monkeypatch: pytest.MonkeyPatch):
    model = TINY_MODELS[family]()
    for routes in (
        [Route(mixed_ranks(model), 0.7)],
        [
            Route(random_adapter(model, rank=1), torch.tensor(-0.5)),
            Route(random_adapter(model, rank=2, seed=1, targets=ATTENTION)),
        ],
    ):
        assert_same(*both_ways(model, routes, monkeypatch), 5e-6)


def test_single_projections(model: TinyModel, monkeypatch: pytest.MonkeyPatch):
    for targets in (r".*to_v", r".*attn1\.to_(q|v)", r".*to_k"):
        assert_same(*both_ways(model, [Route(random_adapter(model, targets={"unet": targets}))], monkeypatch), 5e-6)


@pytest.mark.parametrize("rank", [1, 8])  # blocks inside of the product, and apart from it
def test_a_row_each(model: TinyModel, monkeypatch: pytest.MonkeyPatch, rank: int):
    routes = [
        Route(random_adapter(model, rank=rank), rows=torch.tensor([1.0, 0.0, 0.5])),
        Route(random_adapter(model, rank=1, seed=1, targets=ATTENTION), torch.tensor([0.0, 0.7, 0.0])),
        Route(random_adapter(model, rank=1, seed=2, targets=ATTENTION), 0.3),
    ]
    assert_same(*both_ways(model, routes, monkeypatch, batch=3), 5e-6)


def test_a_place_each_and_other_types_beside(model: TinyModel, monkeypatch: pytest.MonkeyPatch):
    left = torch.zeros(8, 8)
    left[:, :4] = 1.0
    routes = [
        Route(random_adapter(model), 0.8, mask=left),
        Route(random_adapter(model, rank=2, seed=1), rows=torch.tensor([0.0, 1.0]), mask=1 - left),
        Route(random_kronecker(model), 0.5),
        Route(random_adapter(model, seed=2, dora=True, targets=ATTENTION), 0.5),
    ]
    assert_same(*both_ways(model, routes, monkeypatch), 5e-6)


def test_another_adapter_in_between_does_no_harm(model: TinyModel):
    """One memory, three adapters in turn, one of them inside of another: each finds its own factors there."""
    outer = [Route(random_adapter(model, rank=2))]
    inner, other = [Route(random_adapter(model, rank=5, seed=1), 0.5)], [Route(random_adapter(model, rank=3, seed=2))]
    with patched(model.components(), outer):
        first = outputs(model)
        with patched(model.components(), inner):
            outputs(model)
        assert_equal(outputs(model), first)
    resolved = [ResolvedRoutes(model.components(), routes) for routes in (outer, other, inner)]
    expected = []
    for each in resolved:
        with each.open():
            expected.append(outputs(model))
    for each, before in zip(resolved, expected, strict=True):
        with each.open():
            assert_equal(outputs(model), before)
    assert_equal(expected[0], first)


def test_a_backward_pass_after_another_adapter_was_used(model: TinyModel):
    adapter = new_lora(model.components(), ATTENTION, 3, 3.0)
    with torch.no_grad():
        for tensor in adapter.named_tensors().values():
            tensor.add_(0.05)
    tensors = list(adapter.named_tensors().values())
    resolved = ResolvedRoutes(model.components(), [Route(adapter)])
    other = ResolvedRoutes(model.components(), [Route(random_adapter(model, rank=2, seed=3))])

    def gradients(disturbed: bool) -> tuple[Tensor, ...]:
        with resolved.open():
            loss = model.unet(**model.unet_inputs()).sample.square().mean()
        if disturbed:
            with other.open():
                outputs(model)
        return torch.autograd.grad(loss, tensors)

    for ours, disturbed in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(ours, disturbed)


def test_gradients_are_the_plain_paths(model: TinyModel, monkeypatch: pytest.MonkeyPatch):
    adapter = new_lora(model.components(), {**ATTENTION, "text_encoder": r".*(q_proj|out_proj|fc1)"}, 3, 2.0)
    with torch.no_grad():
        for tensor in adapter.named_tensors().values():
            tensor.add_(0.05)
    found = []
    for path in ("auto", "plain"):
        monkeypatch.setenv("STUDIO_KERNELS", path)
        inputs = model.unet_inputs()
        inputs["sample"].requires_grad_()
        with patched(model.components(), [Route(adapter, 0.5)]):
            words = model.text_encoders[0](model.token_ids())[0]
            inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"] + words.mean()
            loss = model.unet(**inputs).sample.square().mean()
            found.append(torch.autograd.grad(loss, [inputs["sample"], *adapter.named_tensors().values()]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


class TestMemory:
    def test_the_model_is_the_same_afterwards(self, model: TinyModel):
        before = fingerprint(model)
        with patched(model.components(), [Route(random_adapter(model))]):
            outputs(model)
        assert fingerprint(model) == before

    def test_it_is_made_once_and_holds_the_weights_and_the_factors(self, model: TinyModel):
        weights = [module.weight for module in model.unet.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        resolved = ResolvedRoutes(model.components(), [Route(random_adapter(model, rank=8))])
        with resolved.open():
            storages = {weight.untyped_storage()._cdata: weight.untyped_storage().nbytes() for weight in weights}
        factors = sum(
            site.layout.block * site.rows[0].numel() for site in resolved._sites if site.modules[0] in set(model.unet.modules())
        )
        assert sum(storages.values()) == 4 * (sum(weight.numel() for weight in weights) + factors)
        with patched(model.components(), [Route(random_adapter(model, rank=3, seed=1))]):
            outputs(model)
        assert {weight.untyped_storage()._cdata for weight in weights} == set(storages)

    def test_a_switch_writes_factors_only(self, model: TinyModel):
        """Two writes for all of them: no weight is touched, no memory is taken."""
        from studio.kernels.bench.counting import count

        two = [ResolvedRoutes(model.components(), [Route(random_adapter(model, seed=seed, alpha=4.0))]) for seed in (1, 2)]
        for each in two:
            with each.open():
                pass
        layers = {id(module) for site in two[0]._sites for module in site.modules}

        def switch() -> None:
            with two[0].open():
                pass

        cost = count(switch)
        factors = sum(tensor.numel() for tensor in two[0].router.routes[0].adapter.named_tensors().values())
        assert set(cost.by_name) <= {"copy_", "_foreach_copy_"} and layers
        assert cost.bytes <= 4 * 3 * factors  # each factor is read once and written once

    def test_a_model_that_moved_is_joined_anew(self, model: TinyModel):
        adapter = random_adapter(model, targets=ATTENTION)
        resolved = ResolvedRoutes(model.components(), [Route(adapter)])
        with resolved.open():
            expected = outputs(model)
        model.unet.double().float()
        with resolved.open():
            assert_equal(outputs(model), expected)
            model.unet.double().float()  # also while it is open
            assert_same(outputs(model), expected)

    def test_a_patched_model_is_saved_and_copied_as_any_other(self, model: TinyModel, tmp_path):
        with patched(model.components(), [Route(random_adapter(model))]):
            pass
        model.unet.save_pretrained(tmp_path)
        saved = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(saved[name], tensor) for name, tensor in model.unet.state_dict().items())
        twin = copy.deepcopy(model.unet)
        with torch.no_grad():
            next(twin.parameters()).add_(1.0)
        assert not torch.equal(next(twin.parameters()), next(model.unet.parameters()))

    def test_a_weight_that_somebody_else_changes_counts(self, model: TinyModel):
        layer = model.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0")
        adapter = random_adapter(model, targets={"unet": r"mid_block.*to_out\.0"})
        x = torch.randn(1, 4, layer.in_features)
        with patched(model.components(), [Route(adapter)]), torch.no_grad():
            before = layer(x)
            layer.weight.mul_(2.0)
            layer.bias.add_(1.0)
            changed = layer(x)
            swapped = torch.func.functional_call(layer, {"weight": torch.zeros_like(layer.weight)}, (x,))
            low_rank = swapped - layer.bias
        torch.testing.assert_close(changed, 2 * (before - low_rank - (layer.bias - 1)) + low_rank + layer.bias)

    def test_a_bias_patch_beside_it(self, model: TinyModel):
        name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
        layer = model.unet.get_submodule(name)
        bias = Adapter(AdapterInfo(name="bias"), {ParameterPath("unet", name, "bias"): FullPatch(torch.ones(layer.out_features))})
        lora = random_adapter(model, targets={"unet": name.replace(".", r"\.")})
        x = torch.randn(1, 4, layer.in_features)
        with torch.no_grad(), patched(model.components(), [Route(lora)]):
            before = layer(x)
            with patched(model.components(), [Route(bias, 0.5)]):
                torch.testing.assert_close(layer(x), before + 0.5)
            torch.testing.assert_close(layer(x), before)


def test_hooks_on_a_projection_see_its_output(model: TinyModel):
    layer = model.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_k")
    seen: list[Tensor] = []
    with patched(model.components(), [Route(random_adapter(model))]):
        expected = outputs(model)
        handle = layer.register_forward_hook(lambda module, arguments, output: seen.append(output))
        assert_same(outputs(model), expected)
        handle.remove()
    assert len(seen) == 1


@pytest.mark.parametrize("merging", ["always", "never"])
def test_merging_changes_no_picture(model: TinyModel, merging: str):
    routes = [
        Route(random_adapter(model), 0.5),
        Route(random_adapter(model, seed=1, dora=True), 0.3),
        Route(random_kronecker(model)),
    ]
    before = fingerprint(model)
    with patched(model.components(), routes):
        expected = outputs(model)
    resolved = ResolvedRoutes(model.components(), routes, merging)  # type: ignore[arg-type]
    with resolved.open():
        assert_same(outputs(model), expected, 1e-5)
        assert bool(resolved._sites) is (merging == "never")
    assert fingerprint(model) == before


def test_ranks_that_cost_more_than_the_layer_are_merged():
    model = tiny_sd15()
    many = [Route(random_adapter(model, rank=8, seed=seed, targets=ATTENTION), 0.2) for seed in range(4)]
    resolved = ResolvedRoutes(model.components(), many)
    with resolved.open():
        merged = outputs(model)
        assert resolved._sites == []
    with patched(model.components(), many, "never"):
        assert_same(outputs(model), merged, 5e-6)


def test_a_site_says_what_it_holds(model: TinyModel):
    resolved = ResolvedRoutes(model.components(), [Route(random_adapter(model, targets=ATTENTION))])
    with resolved.open():
        sizes = sorted(len(site.modules) for site in resolved._sites)
        assert all(isinstance(site, JointSite) and site.is_current() for site in resolved._sites)
    num_blocks = sum(type(module).__name__ == "BasicTransformerBlock" for module in model.unet.modules())
    assert sizes == sorted([3, 2, 1, 1, 1] * num_blocks)
