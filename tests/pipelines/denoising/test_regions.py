"""Regions: words and adapters of their own in one pass, blended by mask; the text axis of a route with a mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from studio.pipelines.adapters import Route, patched
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import Branch, Capture, Isolation, Region, layers_at, token_columns
from tests.support.adapters import random_adapter, random_kronecker
from tests.support.outputs import fingerprint
from tests.support.passes import base_of, latents_of, passes_of, text_of
from tests.support.tiny_models import TEXT_LENGTH, TinyModel

Setup = tuple[BaseModel, TinyModel]
TEXT_LAYERS = {"unet": r".*attn2\.to_[kv]"}
PLACED_LAYERS = {"unet": r".*(attn1\.to_.*|attn2\.to_(q|out\.0)|ff\..*|proj_in|conv1)"}


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return base_of(request.param, tmp_path_factory.mktemp(request.param))


def half(side: str, height: int = 64, width: int = 128) -> torch.Tensor:
    mask = torch.zeros(height, width)
    mask[:, slice(None, width // 2) if side == "left" else slice(width // 2, None)] = 1.0
    return mask


def predict(base: BaseModel, *branches: Branch, **settings: object) -> list[torch.Tensor]:
    passes = passes_of(base, **settings)
    with torch.no_grad():
        return [output.prediction for output in passes.run(latents_of(base), passes.step(0), branches)]


def test_one_region_everywhere_is_a_prompt_and_an_adapter(setup: Setup):
    """Its words and its whole adapter: keys, values, and what has places."""
    base, model = setup
    own, other = text_of(base, "a cat"), text_of(base, "two dogs")
    adapter = random_adapter(model, targets={"unet": f"{TEXT_LAYERS['unet']}|{PLACED_LAYERS['unet']}"})
    if own.pooled is not None:  # SDXL's pooled vector belongs to the whole picture
        other = type(other)(other.prompt_embeds, own.pooled)
    (expected,) = predict(base, Branch(other, [Route(adapter, 0.7)]))
    (regional,) = predict(base, Branch(own, regions=(Region(torch.ones(64, 128), other, [Route(adapter, 0.7)]),)))
    torch.testing.assert_close(regional, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(expected, predict(base, Branch(other))[0], atol=1e-3)


def test_the_same_words_in_every_region_are_no_regions(setup: Setup):
    base, _ = setup
    text = text_of(base, "a cat")
    soft = torch.rand(60, 120, generator=torch.Generator().manual_seed(0))
    (plain,) = predict(base, Branch(text))
    for masks in ((soft, 1 - soft), (half("left"), half("right")), (soft,), (torch.ones(64, 128), torch.ones(64, 128))):
        regions = tuple(Region(mask, text_of(base, "a cat")) for mask in masks)
        torch.testing.assert_close(predict(base, Branch(text, regions=regions))[0], plain, atol=2e-5, rtol=1e-4)


def test_a_layers_output_is_its_regions_blended_by_mask(setup: Setup):
    """Against attention computed with diffusers' own layer, once for each text: shares outside, own words inside."""
    base, _ = setup
    texts = [text_of(base, words) for words in ("a cat", "two dogs", "a boat")]
    layer = layers_at(base.unet, 1)[0]
    attn, seen = base.unet.get_submodule(layer.name), []
    handle = attn.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    soft = torch.zeros(64, 128)
    soft[8:40, 16:80] = 0.5
    hard = torch.zeros(64, 128)
    hard[16:64, 32:128] = 1.0  # they overlap: together 1.5
    (_,) = predict(base, Branch(texts[0], regions=(Region(soft, texts[1]), Region(hard, texts[2]))))
    handle.remove()
    x, output = seen[0]
    with torch.no_grad():
        each = [attn(x, encoder_hidden_states=text.prompt_embeds) for text in texts]
    total = (soft + hard).clamp(min=1.0)
    shares = [(1 - soft - hard).clamp(min=0.0), soft / total, hard / total]
    weights = [F.adaptive_avg_pool2d(share[None, None], layer.grid(8, 16)).reshape(1, -1, 1) for share in shares]
    expected = sum(weight * part for weight, part in zip(weights, each, strict=True))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def test_a_masked_route_acts_on_keys_and_values_of_its_places(setup: Setup):
    base, model = setup
    text = text_of(base, "a cat")
    adapter = random_kronecker(model, targets=TEXT_LAYERS)
    left = half("left")
    passes = passes_of(base)
    with torch.no_grad():
        outputs = passes.run(latents_of(base), passes.step(0), [Branch(text, [Route(adapter, 0.5, mask=left)])])
    assert passes.report() == ()
    (written,) = predict(base, Branch(text, regions=(Region(left, None, [Route(adapter, 0.5)]),)))
    assert torch.equal(outputs[0].prediction, written)
    (plain,) = predict(base, Branch(text))
    (everywhere,) = predict(base, Branch(text, [Route(adapter, 0.5)]))
    assert not torch.allclose(written, plain, atol=1e-4)
    assert not torch.allclose(written, everywhere, atol=1e-4)


def test_what_has_no_place_is_left_out_and_named(setup: Setup):
    base, model = setup
    targets = {"unet": r".*(attn2\.to_k|attn1\.to_q|time_emb_proj)", "text_encoder": r".*q_proj"}
    adapter = random_adapter(model, targets=targets)
    passes = passes_of(base)
    with torch.no_grad():
        passes.run(
            latents_of(base),
            passes.step(0),
            [Branch(text_of(base, "a"), regions=(Region(half("left"), None, [Route(adapter)]),))],
        )
    left_out = {line.path: line.reason for line in passes.report()}
    assert {path.module.rpartition(".")[2] for path in left_out} == {"time_emb_proj", "q_proj"}
    assert all("whole picture" in reason or "a prompt's" in reason for reason in left_out.values())


def test_halves_of_guidance_share_a_batch_and_have_their_own_words(setup: Setup):
    base, model = setup
    mask = half("left")
    routes = [Route(random_adapter(model, targets=PLACED_LAYERS | TEXT_LAYERS))]
    negative, positive = (text_of(base, words) for words in ("bad", "a cat"))
    branches = [
        Branch(negative, regions=(Region(mask, text_of(base, "ugly"), routes),)),
        Branch(positive, regions=(Region(mask, text_of(base, "two dogs"), routes),)),
    ]
    sizes: list[int] = []
    handle = base.unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    together = predict(base, *branches)
    handle.remove()
    assert sizes == [2]
    for prediction, branch in zip(together, branches, strict=True):
        torch.testing.assert_close(prediction, predict(base, branch)[0], atol=2e-5, rtol=1e-4)


def test_different_adapters_are_one_batch_up_to_the_rows_allowed(setup: Setup):
    base, model = setup
    text = text_of(base, "a cat")
    adapters = [random_adapter(model, seed=0), random_kronecker(model, seed=1), random_adapter(model, seed=2, dora=True)]
    branches = [Branch(text, [Route(adapter, 0.6)]) for adapter in adapters] + [Branch(text)]
    sizes: list[int] = []
    handle = base.unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    apart = predict(base, *branches)
    for max_rows, expected in ((4, [4]), (3, [3, 1])):
        sizes.clear()
        together = predict(base, *branches, max_rows=max_rows)
        assert sizes == expected
        for one, other in zip(together, apart, strict=True):
            torch.testing.assert_close(one, other, atol=5e-5, rtol=1e-3)
    handle.remove()


def test_a_region_has_a_map_of_its_own_words(setup: Setup):
    base, _ = setup
    mask, text, own = half("left"), text_of(base, "a cat"), text_of(base, "two dogs")
    layer = layers_at(base.unet, 0 if base.family.name == "sd15" else 1)[0]  # the first: nothing regional came before
    columns = token_columns([[2]], TEXT_LENGTH)
    passes = passes_of(base)
    with torch.no_grad():
        capture = Capture((layer,), region_columns=(columns,))
        (regional,) = passes.run(latents_of(base), passes.step(0), [Branch(text, regions=(Region(mask, own),), capture=capture)])
        (plain,) = passes.run(
            latents_of(base),
            passes.step(0),
            [Branch(type(own)(own.prompt_embeds, text.pooled), capture=Capture((layer,), columns))],
        )
    torch.testing.assert_close(regional.maps.regions[0][layer.name], plain.maps.words[layer.name])
    assert regional.maps.words == {}


def test_text_is_computed_once_and_the_picture_is_the_same_to_the_bit(setup: Setup):
    base, model = setup
    routes = [Route(random_adapter(model, targets=TEXT_LAYERS))]
    region = Region(half("left"), text_of(base, "two dogs"), routes)
    branches = [Branch(text_of(base, words), routes, regions=(region,)) for words in ("", "a cat")]
    counts: list[str] = []
    handles = [
        base.unet.get_submodule(layer.name).to_k.register_forward_hook(lambda module, inputs, output: counts.append("k"))
        for layer in layers_at(base.unet, 1)
    ]
    predictions = {}
    for keeps_text in (True, False):
        counts.clear()
        passes = passes_of(base, keeps_text=keeps_text)
        with torch.no_grad():
            predictions[keeps_text] = [
                output.prediction for index in range(3) for output in passes.run(latents_of(base), passes.step(index), branches)
            ]
        assert len(counts) == len(handles) * 2 * (1 if keeps_text else 3)
    for handle in handles:
        handle.remove()
    assert all(torch.equal(kept, anew) for kept, anew in zip(predictions[True], predictions[False], strict=True))


def test_the_model_is_what_it_was(setup: Setup):
    base, model = setup
    before = fingerprint(model)
    region = Region(half("left"), text_of(base, "two dogs"), [Route(random_adapter(model))])
    branch = Branch(text_of(base, "a cat"), regions=(region,), isolation=Isolation(reach="everything"))
    predict(base, branch)
    assert fingerprint(model) == before
    with (
        pytest.raises(ValueError, match="4 rows"),
        patched(model.components(), [Route(random_adapter(model), rows=torch.ones(4))]),
    ):
        predict(base, branch)
    assert fingerprint(model) == before


def test_regions_that_contradict_themselves_are_refused(setup: Setup):
    base, model = setup
    with pytest.raises(ValueError, match="its route has none of its own"):
        Region(half("left"), None, [Route(random_adapter(model), mask=half("left"))])
    with pytest.raises(ValueError, match="one size"):
        predict(base, Branch(text_of(base, "a"), regions=(Region(half("left")), Region(torch.ones(8, 16)))))
