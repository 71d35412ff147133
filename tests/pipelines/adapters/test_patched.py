"""`patched`: what it adds, and that nothing of it stays."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from studio.pipelines.adapters import (
    Adapter,
    AdapterInfo,
    LoRAPatch,
    ParameterPath,
    Route,
    find_module,
    merge_into,
    merged_parameters,
    new_lora,
    patched,
)
from studio.pipelines.adapters.patches.base import Patch
from studio.pipelines.errors import AdapterMismatchError
from tests.support.adapters import TINY_MODELS, random_adapter
from tests.support.outputs import assert_equal, assert_same, fingerprint, outputs
from tests.support.tiny_models import TinyModel, tiny_embedded, tiny_sd15

pytestmark = pytest.mark.filterwarnings("ignore:.*use_reentrant.*")


@pytest.fixture
def model() -> TinyModel:
    """The cheapest one; where another structure could matter, a test takes all."""
    return tiny_embedded()


@pytest.mark.parametrize("family", TINY_MODELS)
@pytest.mark.parametrize(("dora", "strength"), [(False, -0.6), (True, 0.7)])
def test_patched_draws_what_the_merged_weights_draw(family, dora, strength):
    model = TINY_MODELS[family]()
    adapter = random_adapter(model, dora=dora)
    base = outputs(model)
    with patched(model.components(), [Route(adapter, strength)]) as router:
        ours = outputs(model)
    with merge_into(model.components(), adapter, strength):
        merged = outputs(model)
    assert router.report() == ()
    assert_same(ours, merged, 5e-6)
    assert all((one - other).abs().max() > 0.01 for one, other in zip(ours, base, strict=True))
    assert_equal(outputs(model), base)


def test_strength_is_linear_in_the_weights_for_every_type(model):
    for dora in (False, True):
        adapter = random_adapter(model, dora=dora)
        full = merged_parameters(model.components(), adapter, 1.0)
        half = merged_parameters(model.components(), adapter, 0.5)
        for path, weight in full.items():
            original = find_module(model.components()[path.component], path.module).weight
            torch.testing.assert_close(half[path] - original, 0.5 * (weight - original), atol=1e-6, rtol=1e-4)


def test_strength_zero_and_a_fresh_adapter_are_exactly_the_base(model):
    base = outputs(model)
    with patched(model.components(), [Route(random_adapter(model), 0.0)]):
        assert_equal(outputs(model), base)
    fresh = new_lora(model.components(), {"unet": r".*to_q"}, 4, 4.0)
    with patched(model.components(), [Route(fresh)]):
        assert_equal(outputs(model), base)


class TestRestoring:
    def test_after_a_normal_end(self, model):
        before = fingerprint(model)
        with patched(model.components(), [Route(random_adapter(model))]):
            assert fingerprint(model) != before
            outputs(model)
        assert fingerprint(model) == before

    def test_after_an_exception_in_the_block(self, model):
        before = fingerprint(model)
        with pytest.raises(RuntimeError, match="stop"), patched(model.components(), [Route(random_adapter(model, dora=True))]):
            raise RuntimeError("stop")
        assert fingerprint(model) == before

    def test_after_an_exception_while_opening(self, model):
        before = fingerprint(model)
        adapter = random_adapter(model)
        wrong = {**adapter.patches, ParameterPath("unet", "conv_out"): LoRAPatch(torch.ones(1, 999), torch.ones(4, 1), 1.0)}
        with pytest.raises(AdapterMismatchError, match=r"'random 0' does not fit unet\.conv_out\.weight"):
            with patched(model.components(), [Route(Adapter(adapter.info, wrong))]):
                pass
        assert fingerprint(model) == before

    def test_of_all_other_layers_when_restoring_one_fails(self, model, monkeypatch):
        from studio.pipelines.adapters import patching

        before = fingerprint(model)
        restore, unlucky = patching._restore_forward, model.unet.conv_in

        def failing(module, previous):
            restore(module, previous)
            if module is unlucky_module:
                raise OSError("restoring failed")

        adapter = random_adapter(model)
        unlucky_module = find_module(model.unet, list(adapter.patches)[5].module)
        assert unlucky_module is not unlucky
        monkeypatch.setattr(patching, "_restore_forward", failing)
        with pytest.raises(OSError, match="restoring failed"), patched(model.components(), [Route(adapter)]):
            pass
        assert fingerprint(model) == before

    def test_of_nested_blocks_in_order(self, model):
        first, second = random_adapter(model, seed=1), random_adapter(model, seed=2, dora=True)
        before = fingerprint(model)
        with patched(model.components(), [Route(first, 0.5), Route(second, 0.7)]):
            together = outputs(model)
        with patched(model.components(), [Route(first, 0.5)]):
            outer, outer_outputs = fingerprint(model), outputs(model)
            with patched(model.components(), [Route(second, 0.7)]):
                assert_equal(outputs(model), together)
            assert fingerprint(model) == outer
            assert_equal(outputs(model), outer_outputs)
        assert fingerprint(model) == before

    def test_of_a_forward_that_was_replaced_before(self, model):
        layer = model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
        plain = layer.forward
        layer.forward = lambda x: plain(x) + 1.0
        before = fingerprint(model)
        with patched(model.components(), [Route(random_adapter(model))]):
            assert (layer(torch.zeros(1, layer.in_features)) - 1.0).abs().max() < 1e-6
        assert fingerprint(model) == before

    def test_of_merged_weights_after_an_exception(self, model):
        before = fingerprint(model)
        with pytest.raises(RuntimeError, match="stop"), merge_into(model.components(), random_adapter(model), 0.3):
            raise RuntimeError("stop")
        assert fingerprint(model) == before


def test_adapters_add_up_whatever_their_type_and_rank(model):
    adapters = [random_adapter(model, seed=1), random_adapter(model, seed=2, rank=2, dora=True)]
    components = model.components()
    with patched(components, [Route(adapter, 0.5) for adapter in adapters]):
        ours = outputs(model)
    changes = [merged_parameters(components, adapter, 0.5) for adapter in adapters]
    weights = {path: find_module(components[path.component], path.module).weight for path in changes[0]}
    originals = {path: weight.clone() for path, weight in weights.items()}
    with torch.no_grad():
        for path, weight in weights.items():
            weight.copy_(sum(change[path] - originals[path] for change in changes) + originals[path])
    assert_same(ours, outputs(model), 5e-6)


def test_n_equal_adapters_at_strength_1_over_n_are_the_adapter(model):
    adapter = random_adapter(model)
    with patched(model.components(), [Route(adapter)]):
        one = outputs(model)
    with patched(model.components(), [Route(adapter, 0.25)] * 4):
        assert_same(outputs(model), one)


def test_hooks_still_run_and_see_the_changed_output(model):
    layer = model.unet.conv_in
    seen = []
    handle = layer.register_forward_hook(lambda module, arguments, output: seen.append(output))
    path = ParameterPath("unet", "conv_in")
    down = torch.ones(1, *layer.weight.shape[1:])
    adapter = Adapter(AdapterInfo(name="x"), {path: LoRAPatch(down, torch.ones(layer.out_channels, 1, 1, 1), 1.0)})
    x = torch.ones(1, layer.in_channels, 4, 4)
    base = layer(x)
    with patched(model.components(), [Route(adapter)]):
        layer(x)
    handle.remove()
    assert not torch.equal(seen[1], base)


def test_the_state_dict_of_a_patched_model_is_the_base_models(model):
    before = model.unet.state_dict()
    with patched(model.components(), [Route(random_adapter(model))]):
        during = model.unet.state_dict()
    assert list(during) == list(before)
    assert all(torch.equal(during[name], tensor) for name, tensor in before.items())


class TestRows:
    @pytest.mark.parametrize("dora", [False, True])
    def test_each_picture_can_have_its_own_adapter(self, model, dora):
        first, second = random_adapter(model, seed=1), random_adapter(model, seed=2, rank=2, dora=dora)
        routes = [Route(first, rows=torch.tensor([True, False, False])), Route(second, rows=torch.tensor([False, True, False]))]
        with patched(model.components(), routes):
            mixed = outputs(model, batch=3)
        base = outputs(model, batch=3)
        for row, route in enumerate([[Route(first)], [Route(second)], []]):
            with patched(model.components(), route):
                alone = outputs(model, batch=3)
            assert_same([output[row] for output in mixed], [output[row] for output in alone])
        assert_same([output[2] for output in mixed], [output[2] for output in base], 1e-7)

    def test_rows_and_strengths_can_be_weights(self, model):
        adapter = random_adapter(model)
        with patched(model.components(), [Route(adapter, 0.5, rows=torch.tensor([0.5, 1.0]))]):
            by_rows = outputs(model)
        with patched(model.components(), [Route(adapter, torch.tensor([0.25, 0.5]))]):
            by_strength = outputs(model)
        for row, strength in enumerate((0.25, 0.5)):
            with patched(model.components(), [Route(adapter, strength)]):
                alone = outputs(model)
            assert_same([output[row] for output in by_rows], [output[row] for output in alone])
            assert_same([output[row] for output in by_strength], [output[row] for output in alone])

    def test_rows_that_are_all_off_leave_the_base(self, model):
        base = outputs(model)
        with patched(model.components(), [Route(random_adapter(model), rows=torch.zeros(2, dtype=torch.bool))]):
            assert_equal(outputs(model), base)

    def test_another_number_of_rows_is_an_error_that_says_so(self, model):
        with patched(model.components(), [Route(random_adapter(model), rows=torch.ones(3))]):
            with pytest.raises(ValueError, match="names 3 rows and the model's batch has 2"):
                outputs(model)

    def test_a_strength_can_be_learned(self, model):
        strength = torch.tensor(0.5, requires_grad=True)
        with patched(model.components(), [Route(random_adapter(model), strength)]):
            model.unet(**model.unet_inputs()).sample.square().mean().backward()
        assert strength.grad is not None
        assert strength.grad.abs() > 0


class TestTraining:
    @staticmethod
    def gradients(model: TinyModel, adapter: Adapter) -> dict[str, torch.Tensor]:
        tensors = adapter.named_tensors()
        for tensor in tensors.values():
            tensor.requires_grad_(True)
            tensor.grad = None
        with patched(model.components(), [Route(adapter)]):
            states = model.text_encoders[0](model.token_ids())[0]
            inputs = model.unet_inputs()
            inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"] + states.mean()
            model.unet(**inputs).sample.square().mean().backward()
        return {name: tensor.grad for name, tensor in tensors.items() if "text_encoder_2" not in name}

    @pytest.mark.parametrize("dora", [False, True])
    def test_gradients_reach_every_tensor(self, model, dora):
        gradients = self.gradients(model, random_adapter(model, dora=dora))
        last_layer = [name for name, gradient in gradients.items() if gradient is None]
        assert last_layer == []
        assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
        assert all(parameter.grad is None for parameter in model.unet.parameters())

    @pytest.mark.parametrize("dora", [False, True])
    def test_gradient_checkpointing_changes_no_gradient(self, model, dora):
        adapter = random_adapter(model, dora=dora)
        plain = self.gradients(model, adapter)
        model.unet.train()
        model.unet.enable_gradient_checkpointing()
        checkpointed = self.gradients(model, adapter)
        for name, gradient in plain.items():
            torch.testing.assert_close(checkpointed[name], gradient, atol=1e-6, rtol=1e-4)

    def test_training_steps_are_seen_without_opening_the_block_again(self):
        model = tiny_embedded()
        adapter = new_lora(model.components(), {"unet": r".*\.to_q"}, 2, 2.0)
        with patched(model.components(), [Route(adapter)]):
            before = outputs(model)
            with torch.no_grad():
                for tensor in adapter.named_tensors().values():
                    tensor.add_(0.1)
            after = outputs(model)
        assert not torch.equal(before[0], after[0])


class TestWhatDoesNotFit:
    def test_a_layer_the_model_lacks(self, model):
        path = ParameterPath("unet", "down_blocks.9.attentions.0.proj_in")
        adapter = Adapter(AdapterInfo(name="other"), {path: LoRAPatch(torch.ones(1, 4), torch.ones(4, 1), 1.0)})
        with pytest.raises(AdapterMismatchError, match=r"'other' changes unet\.down_blocks\.9.*made for another base"):
            with patched(model.components(), [Route(adapter)]):
                pass

    def test_a_component_that_is_not_at_hand_is_left_out_and_reported(self, model):
        adapter = random_adapter(model)
        with patched({"unet": model.unet}, [Route(adapter)]) as router:
            pass
        left_out = {line.path for line in router.report()}
        assert left_out == {path for path in adapter.patches if path.component != "unet"}
        assert all(line.adapter == "random 0" and "there is no text_encoder" in line.reason for line in router.report())


class _BiasPatch:
    """Δ = values: a patch without a per-position form."""

    kind = "bias"
    routable = False
    needs_base_out = False

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def parameters(self) -> dict[str, torch.Tensor]:
        return {"values": self.values}

    def num_parameters(self) -> int:
        return self.values.numel()

    def settings(self) -> dict[str, float | bool | str]:
        return {}

    def bind(self, weight, spec):
        return self

    def delta(self) -> torch.Tensor:
        return self.values

    def forward_delta(self, x, base_out):
        raise NotImplementedError

    def to(self, device=None, dtype=None):
        return _BiasPatch(self.values.to(device, dtype))


class TestPatchesWithoutAPerPositionForm:
    def test_act_on_whole_batches(self, model):
        norm = model.unet.conv_norm_out
        patch: Patch = _BiasPatch(torch.ones_like(norm.bias))
        adapter = Adapter(AdapterInfo(name="norms"), {ParameterPath("unet", "conv_norm_out", "bias"): patch})
        before = fingerprint(model)
        with patched(model.components(), [Route(adapter, 0.5)]) as router:
            ours = outputs(model)
        assert router.report() == ()
        assert fingerprint(model) == before
        with torch.no_grad():
            norm.bias.add_(0.5)
        assert_equal(ours, outputs(model))

    def test_are_left_out_of_routes_with_rows_or_masks(self, model):
        adapter = Adapter(AdapterInfo(name="norms"), {ParameterPath("unet", "conv_norm_out", "bias"): _BiasPatch(torch.ones(16))})
        base = outputs(model)
        for route in (Route(adapter, rows=torch.ones(2)), Route(adapter, mask=torch.ones(8, 8)), Route(adapter, torch.ones(2))):
            with patched(model.components(), [route]) as router:
                assert_equal(outputs(model), base)
            assert "whole batches only" in router.report()[0].reason


def test_offloaded_weights_are_no_obstacle():
    from accelerate import cpu_offload

    model = tiny_sd15()
    adapter = random_adapter(model, targets={"unet": r".*attn.*|.*conv1"})
    with patched(model.components(), [Route(adapter)]):
        expected = outputs(model)
    cpu_offload(model.unet, torch.device("cpu"))
    assert model.unet.conv_in.weight.is_meta
    with patched(model.components(), [Route(adapter)]):
        assert_same(outputs(model), expected)


def test_replacing_information_does_not_change_what_an_adapter_does(model):
    adapter = random_adapter(model)
    renamed = Adapter(replace(adapter.info, name="another"), adapter.patches)
    assert renamed.content_hash() == adapter.content_hash() == adapter.to(dtype=torch.float64).content_hash()
    path, patch = next(iter(adapter.patches.items()))
    assert isinstance(patch, LoRAPatch)
    stronger = Adapter(adapter.info, {**adapter.patches, path: replace(patch, alpha=patch.alpha * 2)})
    assert stronger.content_hash() != adapter.content_hash()


def test_modules_are_found_in_both_layouts_of_a_text_encoder():
    model = TINY_MODELS["sdxl"]()
    name = "text_model.encoder.layers.1.mlp.fc1"
    for encoder in model.text_encoders:
        assert isinstance(find_module(encoder, name), nn.Linear)
        assert find_module(encoder, "text_model.encoder.layers.7.mlp.fc1") is None
    assert isinstance(find_module(model.text_encoders[1], "text_projection"), nn.Linear)
    assert isinstance(find_module(model.unet, "conv_in"), nn.Conv2d)
