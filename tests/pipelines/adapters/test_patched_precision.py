"""`patched` in the number formats and memory layouts that models come in."""


import pytest
import torch

from studio.pipelines.adapters import (
    Route,
    patched,
)
from tests.support.adapters import random_adapter
from tests.support.outputs import assert_equal, assert_same, outputs
from tests.support.tiny_models import TinyModel, tiny_embedded, tiny_sd15

pytestmark = pytest.mark.filterwarnings("ignore:.*use_reentrant.*")


@pytest.fixture
def model() -> TinyModel:
    """The cheapest one; where another structure could matter, a test takes all."""
    return tiny_embedded()


class TestPrecision:
    def test_a_float32_adapter_on_a_bfloat16_model(self):
        model = tiny_sd15()
        adapter = random_adapter(model)
        with patched(model.components(), [Route(adapter)]):
            exact = outputs(model)[0]
        model.unet.bfloat16()
        inputs = {
            name: value.bfloat16() if torch.is_floating_point(value) else value for name, value in model.unet_inputs().items()
        }
        with torch.no_grad(), patched(model.components(), [Route(adapter)]):
            rough = model.unet(**inputs).sample
        assert rough.dtype == torch.bfloat16
        assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean()

    @pytest.mark.parametrize("dora", [False, True])
    def test_under_autocast(self, dora):
        model = tiny_sd15()
        adapter = random_adapter(model, dora=dora)
        with patched(model.components(), [Route(adapter)]):
            exact = outputs(model)[0]
            with torch.autocast("cpu", torch.bfloat16):
                rough = outputs(model)[0]
        assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean()

    def test_channels_last(self):
        model = tiny_sd15()
        adapter = random_adapter(model)
        with patched(model.components(), [Route(adapter)]):
            expected = outputs(model)
            model.unet.to(memory_format=torch.channels_last)
            assert_same(outputs(model), expected, 5e-6)

    def test_a_float16_file_on_a_float32_model_computes_in_float32(self):
        model = tiny_sd15()
        adapter = random_adapter(model).to(dtype=torch.float16)
        with patched(model.components(), [Route(adapter)]):
            half = outputs(model)
        with patched(model.components(), [Route(adapter.to(dtype=torch.float32))]):
            assert_equal(outputs(model), half)
