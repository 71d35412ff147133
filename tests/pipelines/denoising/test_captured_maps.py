"""Attention maps of chosen words at chosen layers: the model's own numbers, with gradients, from passes that stop early."""

from __future__ import annotations

import pytest
import torch

from studio.pipelines.adapters import Route
from studio.pipelines.base_model import BaseModel
from studio.pipelines.denoising import Branch, Capture, Isolation, Region, attention_layers, layers_at, mean_map, token_columns
from studio.pipelines.errors import BaseModelError
from tests.support.adapters import random_adapter
from tests.support.outputs import fingerprint
from tests.support.passes import base_of, latents_of, passes_of, text_of
from tests.support.tiny_models import TEXT_LENGTH, TinyModel

Setup = tuple[BaseModel, TinyModel]


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    return base_of(request.param, tmp_path_factory.mktemp(request.param))


def their_probabilities(base: BaseModel, name: str, latents: torch.Tensor, text: object) -> torch.Tensor:
    """What diffusers' own explicit attention computes in one layer, `[B, Q, K]`, averaged over heads."""
    attn = base.unet.get_submodule(name)
    seen: list[torch.Tensor] = []

    class Explicit:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):  # type: ignore[no-untyped-def]
            read = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            query, key = attn.head_to_batch_dim(attn.to_q(hidden_states)), attn.head_to_batch_dim(attn.to_k(read))
            probabilities = attn.get_attention_scores(query, key, None)
            seen.append(probabilities.unflatten(0, (-1, attn.heads)).mean(1))
            return before(attn, hidden_states, encoder_hidden_states=encoder_hidden_states)

    before = attn.processor
    attn.processor = Explicit()
    try:
        passes = passes_of(base, pictures=len(latents), keeps_text=False)
        passes.run(latents, passes.step(0), [Branch(text)])
    finally:
        attn.processor = before
    return seen[0]


def test_levels_and_order(setup: Setup):
    base, model = setup
    layers = attention_layers(base.unet)
    assert [layer.kind for layer in layers[:2]] == ["self", "cross"]
    stacks = list(dict.fromkeys(layer.stack for layer in layers))
    seen: list[str] = []
    handles = [
        base.unet.get_submodule(stack).register_forward_hook(lambda module, inputs, output, stack=stack: seen.append(stack))
        for stack in stacks
    ]
    sizes: dict[str, int] = {}
    handles += [
        base.unet.get_submodule(layer.name).register_forward_hook(
            lambda module, inputs, output, name=layer.name: sizes.update({name: output.shape[1]})
        )
        for layer in layers
    ]
    with torch.no_grad():
        base.unet(**model.unet_inputs(height=9, width=14))
    for handle in handles:
        handle.remove()
    assert seen == stacks
    assert {layer.name: layer.grid(9, 14)[0] * layer.grid(9, 14)[1] for layer in layers} == sizes
    if model.family == "sd15":
        assert [layer.stack for layer in layers_at(base.unet, 2)] == [
            *(f"down_blocks.2.attentions.{index}" for index in (0, 1)),
            *(f"up_blocks.1.attentions.{index}" for index in (0, 1, 2)),
        ]


@torch.no_grad()
def test_maps_are_the_models_own(setup: Setup):
    base, _ = setup
    text, latents = text_of(base, "a cat", "two dogs"), latents_of(base, pictures=2)
    own, words = layers_at(base.unet, 1, "self")[0], layers_at(base.unet, 1)[-1]
    columns = token_columns([[2], [3, 4]], TEXT_LENGTH)
    passes = passes_of(base, pictures=2)
    plain = passes.run(latents, passes.step(0), [Branch(text)])[0]
    branch = Branch(text, capture=Capture((own, words), columns))
    (output,) = passes.run(latents, passes.step(0), [branch])
    assert torch.equal(output.prediction, plain.prediction)
    assert plain.maps is None
    theirs = their_probabilities(base, words.name, latents, text)
    expected = torch.stack([theirs[..., 2], theirs[..., 3] + theirs[..., 4]], dim=1).unflatten(-1, words.grid(8, 16))
    torch.testing.assert_close(output.maps.words[words.name], expected)
    torch.testing.assert_close(output.maps.places[own.name], their_probabilities(base, own.name, latents, text))
    assert output.maps.words.keys() == {words.name}
    assert mean_map(output.maps.words, (8, 16)).shape == (2, 2, 8, 16)


def test_each_branch_and_picture_has_words_of_its_own(setup: Setup):
    base, _ = setup
    latents = latents_of(base, pictures=2)
    layer = layers_at(base.unet, 2)[0]
    texts = [text_of(base, "a cat", "two dogs"), text_of(base, "a boat", "a house")]
    per_picture = torch.stack([token_columns([[1]], TEXT_LENGTH), token_columns([[3]], TEXT_LENGTH)])
    captures = [Capture((layer,), per_picture), Capture((layer,), token_columns([[2], [5]], TEXT_LENGTH))]
    passes = passes_of(base, pictures=2)
    together = passes.run(latents, passes.step(0), [Branch(t, capture=c) for t, c in zip(texts, captures, strict=True)])
    for output, text, capture in zip(together, texts, captures, strict=True):
        (alone,) = passes.run(latents, passes.step(0), [Branch(text, capture=capture)])
        torch.testing.assert_close(output.maps.words[layer.name], alone.maps.words[layer.name])
    assert [len(output.maps.words[layer.name][0]) for output in together] == [1, 2]


@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_gradients_reach_the_latents_from_a_pass_that_stops(setup: Setup, is_checkpointed: bool):
    """The same as of the whole pass, with adapters; and nothing behind the last captured layer runs."""
    base, model = setup
    layers = layers_at(base.unet, 1)[:2]
    routes = [Route(random_adapter(model, targets={"unet": ".*attn2.*"}))]
    branch = Branch(text_of(base, "a cat"), routes, capture=Capture(layers, token_columns([[2]], TEXT_LENGTH)))
    passes, ran = passes_of(base), []
    handle = base.unet.conv_out.register_forward_hook(lambda module, inputs, output: ran.append(True))
    gradients = []
    if is_checkpointed:
        base.unet.enable_gradient_checkpointing()
        base.unet.train()
    before = fingerprint(model)
    try:
        for stops_early in (True, False):
            latents = latents_of(base).requires_grad_()
            with passes.open(latents, passes.step(0), [branch], stops_early=stops_early) as (output,):
                assert (output.prediction is None) is stops_early
                loss = mean_map(output.maps.words).square().sum()
                gradients.append(torch.autograd.grad(loss, latents)[0])
            assert ran == [] or not stops_early
        assert fingerprint(model) == before
    finally:
        handle.remove()
        base.unet.disable_gradient_checkpointing()
        base.unet.eval()
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("processor", "advice"),
    [("XFormersAttnProcessor", "disable_xformers"), ("SlicedAttnProcessor", "disable_attention_slicing")],
)
def test_a_backend_that_cannot_is_refused_by_name(setup: Setup, processor: str, advice: str):
    from diffusers.models import attention_processor

    base, _ = setup
    made = getattr(attention_processor, processor)
    layer = layers_at(base.unet, 1)[0]
    attn = base.unet.get_submodule(layer.name)
    before, attn.processor = attn.processor, made(1) if processor.startswith("Sliced") else made()
    text, passes = text_of(base, "a cat"), passes_of(base)
    left = torch.ones(8, 16)
    wishes = {
        "Attention maps": {"capture": Capture((layer,), token_columns([[1]], TEXT_LENGTH))},
        "Regions that do not see": {"regions": (Region(left),), "isolation": Isolation()},
        "Words of their own": {"regions": (Region(left, text_of(base, "a dog")),)},
    }
    try:
        for sentence, wish in wishes.items():
            with pytest.raises(BaseModelError, match=f"{sentence}.*{layer.name} computes it with {processor}: call {advice}"):
                passes.run(latents_of(base), passes.step(0), [Branch(text, **wish)])
    finally:
        attn.processor = before


def test_words_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="16"):
        token_columns([[16]], 16)
    with pytest.raises(ValueError, match="one token or more"):
        token_columns([[]], 16)
    with pytest.raises(ValueError, match="asked for none"):
        mean_map({})
