"""Routes bound once and opened many times."""

import torch

from studio.pipelines.adapters import Adapter, AdapterInfo, FullPatch, ParameterPath, Route, patched
from studio.pipelines.adapters.patching import ResolvedRoutes
from tests.support.adapters import random_adapter
from tests.support.outputs import fingerprint
from tests.support.sparse import sparse_adapter
from tests.support.tiny_models import tiny_sd15


def test_every_opening_is_what_patched_does():
    """LoRA, a sparse change that is folded into weights, and a changed bias; in and out of another adapter's block."""
    model = tiny_sd15()
    inputs = model.unet_inputs()
    bias = Adapter(AdapterInfo(name="bias"), {ParameterPath("unet", "conv_in", "bias"): FullPatch(torch.ones(16))})
    routes = [Route(random_adapter(model, targets={"unet": ".*to_q|.*conv1"}), 0.5), Route(sparse_adapter(model)), Route(bias)]
    outer = [Route(random_adapter(model, seed=1, targets={"unet": ".*to_q"})), Route(bias, 0.3)]

    def run() -> torch.Tensor:
        with torch.no_grad():
            return model.unet(**inputs).sample

    before, plain = fingerprint(model), run()
    with patched(model.components(), routes):
        inner = run()
    with patched(model.components(), outer), patched(model.components(), routes):
        both = run()
    resolved = ResolvedRoutes(model.components(), routes)
    for _ in range(2):
        with resolved.open() as router:
            assert torch.equal(run(), inner)
            assert router.report() == ()
        assert torch.equal(run(), plain)
        with patched(model.components(), outer), resolved.open():
            assert torch.equal(run(), both)
    assert fingerprint(model) == before


def test_what_an_opening_made_is_kept_for_the_next():
    model = tiny_sd15()
    resolved = ResolvedRoutes(model.components(), [Route(sparse_adapter(model))])
    layer = model.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    with resolved.open():
        first = layer.forward
        assert first.weight is not None  # folded
    with resolved.open():
        assert layer.forward is first
