"""Regions: each adapter where it belongs, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from studio.pipelines.base_model import BaseModel
from studio.pipelines.errors import UserError
from tests.support.scenes import compiled_for, drawn, kronecker, lora
from tests.support.tiny_bases import tiny_base

HALVES = [{"region": {"box": [0, 0, 0.5, 1]}}, {"region": {"box": [0.5, 0, 1, 1]}}]
SIZE = {"height": 128, "width": 128, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base("sd15", tmp_path_factory.mktemp("base"))


def test_nothing_leaks_under_strict_isolation(base: BaseModel):
    """Two adapters of different type in the two halves, one of them a thousand times as strong: the other half is the same,
    bit for bit."""
    adapters = [lora(base, 1, targets={"unet": r".*(attn|ff|proj|conv).*"}), kronecker(base, 2)]
    strict = {"name": "regional", "isolation": "strict"}
    before = drawn(base, adapters, strict, entries=HALVES, **SIZE)
    loud = [HALVES[0], HALVES[1] | {"strength": 1000.0}]
    after = drawn(base, adapters, strict, entries=loud, **SIZE)
    assert torch.equal(after[..., :8], before[..., :8])
    assert not torch.equal(after[..., 8:], before[..., 8:])
    open_to_all = {"name": "regional", "isolation": "none"}
    leaking = drawn(base, adapters, open_to_all, entries=loud, **SIZE)
    assert not torch.equal(leaking[..., :8], drawn(base, adapters, open_to_all, entries=HALVES, **SIZE)[..., :8])


def test_the_whole_canvas_as_a_region_is_no_region(base: BaseModel):
    adapter = lora(base, 1, targets={"unet": r".*(attn|ff|proj_in|proj_out|conv1|conv2).*", "text_encoder": r".*"})
    whole = [{"region": {"box": [0, 0, 1, 1]}}]
    torch.testing.assert_close(
        drawn(base, [adapter], "regional", entries=whole), drawn(base, [adapter], "merge"), rtol=1e-3, atol=1e-4
    )


def test_a_region_reads_its_own_words(base: BaseModel):
    adapters = [lora(base, 1), lora(base, 2)]
    strict = {"name": "regional", "isolation": "strict"}
    same = drawn(base, adapters, strict, entries=HALVES, **SIZE)
    worded = [HALVES[0] | {"prompt": "a fish", "negative_prompt": "fog"}, HALVES[1]]
    changed = drawn(base, adapters, strict, entries=worded, **SIZE)
    assert torch.equal(changed[..., 8:], same[..., 8:]) and not torch.equal(changed[..., :8], same[..., :8])
    with pytest.raises(UserError, match=r"entry 1 \(1\) has a prompt of its own and no region to read it"):
        compiled_for(base, adapters, "regional", entries=[{"prompt": "a fish"}, {}])


def test_what_has_no_place_is_named(base: BaseModel):
    compiled = compiled_for(base, [lora(base, 1)], "regional", entries=[{"region": {"box": [0, 0, 0.5, 1]}}])
    assert not compiled.notes, "attention, feed-forwards and convolutions all have one"
    timed = lora(base, 1, targets={"unet": r".*(time_emb_proj|attn2\.to_k)"})
    compiled = compiled_for(base, [timed], "regional", entries=[{"region": {"box": [0, 0, 0.5, 1]}}])
    (note,) = compiled.notes
    assert note.startswith("entry 1 (1): ") and "one vector for the whole picture" in note
