"""Files of sparse changes: their size, what a damaged one says, the way back to other tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from studio.kernels.sparse_index import indices_below
from studio.pipelines.adapters import (
    Adapter,
    AdapterInfo,
    ParameterPath,
    Route,
    SparsePatch,
    load_adapter,
    merged_parameters,
    patched,
    read_header,
    save_adapter,
)
from studio.pipelines.adapters.base_samples import BaseSamples
from studio.pipelines.adapters.conversion import to_lora
from studio.pipelines.adapters.merging import merge_all_into
from studio.pipelines.adapters.sparse_export import require_faithful, with_positions
from studio.pipelines.errors import AdapterFileError, AdapterMismatchError, UserError
from studio.pipelines.families import family_named
from tests.support.adapters import TINY_MODELS
from tests.support.sparse import sparse_adapter

KEY = "unet.layer.weight"


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(600, 500).requires_grad_(False)


def adapter_of(layer: nn.Linear, share: float) -> Adapter:
    threshold = float(layer.weight.abs().flatten().quantile(share))
    indices = indices_below(layer.weight, threshold)
    base = BaseSamples.of(layer.weight, "sd15")
    patch = SparsePatch(1e-3 * torch.randn(len(indices)), (500, 600), indices, threshold, base=base)
    return Adapter(AdapterInfo(name="x", type="sparse", family="sd15"), {ParameterPath("unet", "layer"): patch})


@pytest.mark.parametrize(("share", "largest"), [(0.1, 3.02), (0.02, 3.1), (0.01, 3.2)])
def test_a_trained_weight_takes_about_three_bytes_and_two_without_positions(
    layer: nn.Linear, tmp_path: Path, share: float, largest: float
):
    adapter = adapter_of(layer, share)
    count = adapter.num_parameters()
    for dialect, bytes_each in (("sparse", largest), ("sparse-values", 2.02)):
        path = tmp_path / f"{dialect}.safetensors"
        save_adapter(adapter, path, dialect, redact="minimal")
        header = read_header(path)
        assert sum(entry.end - entry.start for entry in header.tensors.values()) <= bytes_each * count + 16
    assert count >= 0.9 * share * 300_000


def test_both_files_do_the_same_on_the_base_and_nothing_on_another(layer: nn.Linear, tmp_path: Path):
    adapter = adapter_of(layer, 0.05)
    other = nn.ModuleDict({"layer": nn.Linear(600, 500).requires_grad_(False)})
    outputs, x = [], torch.randn(3, 600)
    for dialect in ("sparse", "sparse-values"):
        path = tmp_path / f"{dialect}.safetensors"
        save_adapter(adapter, path, dialect, dtype=torch.float32, redact="minimal")
        read = load_adapter(path)
        with patched({"unet": nn.ModuleDict({"layer": layer})}, [Route(read)]):
            outputs.append(layer(x))
        with pytest.raises(AdapterMismatchError, match="base model 'sd15'"):
            merged_parameters({"unet": other}, read)
    assert torch.equal(*outputs)
    bare = load_adapter(tmp_path / "sparse-values.safetensors")
    assert bare.content_hash() == adapter.content_hash()
    with pytest.raises(AdapterFileError, match="give the base model"):
        save_adapter(bare, tmp_path / "again.safetensors", "sparse", family=family_named("sd15"))


def _set(part: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor], dict], None]:
    return lambda tensors, header: tensors.__setitem__(f"{KEY}.{part}", tensor)


def _gone(part: str) -> Callable[[dict[str, torch.Tensor], dict], None]:
    return lambda tensors, header: tensors.__delitem__(f"{KEY}.{part}")


def _facts(**changes: object) -> Callable[[dict[str, torch.Tensor], dict], None]:
    return lambda tensors, header: header["tensors"][KEY].update(changes)


DAMAGES = {
    "one value less": (lambda t, h: t.__setitem__(f"{KEY}.sparse_values", t[f"{KEY}.sparse_values"][1:]), "values for"),
    "position beyond the end": (_set("sparse_shape", torch.tensor([5, 600])), "outside of a parameter"),
    "another position": (lambda t, h: t[f"{KEY}.sparse_gaps"].add_(t[f"{KEY}.sparse_gaps"] == 0), "not those it was written"),
    "half a position": (lambda t, h: t[f"{KEY}.sparse_gaps"][-1:].fill_(255), "in the middle"),
    "positions as floats": (_set("sparse_gaps", torch.ones(3)), "not bytes"),
    "a shape of floats": (_set("sparse_shape", torch.tensor([1.5, 2.0])), "no.*row of whole numbers"),
    "an impossible shape": (_set("sparse_shape", torch.tensor([2**40, 2**40])), "cannot have the shape"),
    "no shape": (_gone("sparse_shape"), "belong to every layer"),
    "values in a table": (lambda t, h: t.__setitem__(f"{KEY}.sparse_values", t[f"{KEY}.sparse_values"][None]), "in a row"),
    "no number": (lambda t, h: t[f"{KEY}.sparse_values"].fill_(float("nan")), "NaN"),
    "a threshold of text": (_facts(threshold="small"), "no positive number"),
    "samples of text": (_facts(base="!"), "samples of the base model"),
    "a later version": (lambda t, h: h.update(format=99), "later version"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_the_reason(layer: nn.Linear, tmp_path: Path, damage: str):
    path = tmp_path / "x.safetensors"
    save_adapter(adapter_of(layer, 0.02), path, "sparse")
    tensors, metadata = load_file(path), dict(read_header(path).metadata)
    header = json.loads(metadata["studio.sparse"])
    change, sentence = DAMAGES[damage]
    change(tensors, header)
    save_file(tensors, path, {**metadata, "studio.sparse": json.dumps(header)})
    with pytest.raises(AdapterFileError, match=sentence):
        load_adapter(path)


def test_positions_that_are_lost_with_the_metadata_are_missed(layer: nn.Linear, tmp_path: Path):
    path = tmp_path / "x.safetensors"
    save_adapter(adapter_of(layer, 0.02), path, "sparse-values")
    save_file(load_file(path), path)
    with pytest.raises(AdapterFileError, match="lost its metadata"):
        load_adapter(path)


def test_a_lora_has_no_place_in_it_and_it_none_in_a_lora_file(tmp_path: Path):
    from tests.support.adapters import random_adapter

    model = TINY_MODELS["sd15"]()
    with pytest.raises(AdapterFileError, match="lora"):
        save_adapter(random_adapter(model), tmp_path / "x.safetensors", "sparse")
    for dialect in ("peft", "kohya"):
        with pytest.raises(AdapterFileError, match="sparse"):
            save_adapter(sparse_adapter(model), tmp_path / "x.safetensors", dialect)


def test_merged_with_others_each_is_taken_against_the_base(tmp_path: Path):
    from tests.support.adapters import random_adapter

    model = TINY_MODELS["embedded"]()
    adapters = [(random_adapter(model, dora=True), 0.5), (sparse_adapter(model), 1.0), (sparse_adapter(model), -0.25)]
    inputs = model.unet_inputs()
    with torch.no_grad():
        with patched(model.components(), [Route(adapter, strength) for adapter, strength in adapters]):
            expected = model.unet(**inputs).sample
        with merge_all_into(model.components(), adapters):
            torch.testing.assert_close(model.unet(**inputs).sample, expected, atol=1e-5, rtol=1e-4)


def test_a_lora_that_loses_most_of_it_is_refused(layer: nn.Linear):
    """The support is random, so that the change has no low rank of its own."""
    adapter = adapter_of(layer, 0.05)
    small = to_lora(adapter, rank=16)
    assert 0.1 < small.energy < 0.2
    with pytest.raises(UserError, match=r"keeps 1\d% of what 'x' learned.* --rank.* --force"):
        require_faithful(small, adapter)
    whole = to_lora(adapter, rank=500)
    assert whole.energy > 0.999
    require_faithful(whole, adapter)


def test_positions_are_written_out_with_the_base_at_hand(layer: nn.Linear, tmp_path: Path):
    adapter = adapter_of(layer, 0.02)
    save_adapter(adapter, tmp_path / "bare.safetensors", "sparse-values", dtype=torch.float32)
    bare = load_adapter(tmp_path / "bare.safetensors")
    whole = with_positions(bare, {"unet": nn.ModuleDict({"layer": layer})})
    save_adapter(whole, tmp_path / "whole.safetensors", "sparse", dtype=torch.float32)
    assert load_adapter(tmp_path / "whole.safetensors").content_hash() == adapter.content_hash()
    with pytest.raises(AdapterMismatchError, match="with --base"):
        to_lora(bare, rank=4)
