"""What every file dialect must do."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.pipelines.adapters import Adapter, load_adapter, save_adapter
from studio.pipelines.adapters.formats import DIALECTS
from studio.pipelines.families import family_named
from tests.support.adapters import TINY_MODELS, mixed_ranks, random_adapter
from tests.support.sparse import sparse_adapter

# Keys and shapes of one layer or more, as other tools write them. A dialect must know its own and refuse all others.
FIXTURES: dict[str, list[dict[str, tuple[int, ...] | torch.Tensor]]] = {
    "peft": [
        {
            "unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (2, 4),
            "unet.down_blocks.0.attentions.0.proj_in.lora_B.weight": (6, 2),
        },
        {
            "unet.down_blocks.0.resnets.0.conv1.lora_A.weight": (2, 4, 3, 3),
            "unet.down_blocks.0.resnets.0.conv1.lora_B.weight": (6, 2, 1, 1),
            "unet.down_blocks.0.resnets.0.conv1.lora_magnitude_vector": (1, 6, 1, 1),
            "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": (2, 4),
            "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_B.weight": (6, 2),
            "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_magnitude_vector.weight": (6,),
        },
    ],
    "kohya": [
        {
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight": (2, 4),
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight": (6, 2),
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.alpha": (),
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (2, 4),
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": (6, 2),
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha": (),
        },
        {
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight": (2, 4),
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_up.weight": (6, 2),
            "lora_te2_text_model_encoder_layers_31_mlp_fc1.lora_down.weight": (2, 4),
            "lora_te2_text_model_encoder_layers_31_mlp_fc1.lora_up.weight": (6, 2),
        },
        {
            "lora_unet_output_blocks_5_0_in_layers_2.lora_down.weight": (2, 4, 3, 3),
            "lora_unet_output_blocks_5_0_in_layers_2.lora_up.weight": (6, 2, 1, 1),
            "lora_unet_output_blocks_5_0_in_layers_2.alpha": (1,),
            "lora_unet_output_blocks_5_0_in_layers_2.dora_scale": (6, 1, 1, 1),
        },
    ],
    "lycoris": [
        {
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.diff": (6, 4),
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.diff": (6, 4),
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.diff_b": (6,),
            "lora_unet_conv_norm_out.w_norm": (6,),
            "lora_unet_conv_norm_out.b_norm": (6,),
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (2, 4),
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight": (6, 2),
            "lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha": (),
        },
        {
            "lycoris_mid_block_resnets_0_conv1.lora_down.weight": (2, 4, 3, 3),
            "lycoris_mid_block_resnets_0_conv1.lora_up.weight": (6, 2, 1, 1),
        },
        {"lora_unet_input_blocks_4_1_proj_in.diff": (6, 4)},
        {
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lokr_w1": (3, 2),
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lokr_w2": (2, 4),
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.alpha": (),
            "lora_unet_output_blocks_5_0_in_layers_2.lokr_w1_a": (3, 1),
            "lora_unet_output_blocks_5_0_in_layers_2.lokr_w1_b": (1, 2),
            "lora_unet_output_blocks_5_0_in_layers_2.lokr_w2_a": (2, 3),
            "lora_unet_output_blocks_5_0_in_layers_2.lokr_w2_b": (2, 4),
            "lora_unet_output_blocks_5_0_in_layers_2.lokr_t2": (2, 2, 3, 3),
            "lora_unet_output_blocks_5_0_in_layers_2.alpha": (),
            "lora_te2_text_model_encoder_layers_31_mlp_fc1.hada_w1_a": (6, 2),
            "lora_te2_text_model_encoder_layers_31_mlp_fc1.hada_w1_b": (2, 4),
            "lora_te2_text_model_encoder_layers_31_mlp_fc1.hada_w2_a": (6, 2),
            "lora_te2_text_model_encoder_layers_31_mlp_fc1.hada_w2_b": (2, 4),
            "lora_te2_text_model_encoder_layers_31_mlp_fc1.alpha": (),
        },
        {"lycoris_mid_block_resnets_0_conv1.lokr_w1": (3, 2), "lycoris_mid_block_resnets_0_conv1.lokr_w2": (2, 4, 3, 3)},
    ],
    "peft-lokr": [
        {
            "unet.down_blocks.0.attentions.0.proj_in.lokr_w1": (2, 2),
            "unet.down_blocks.0.attentions.0.proj_in.lokr_w2_a": (6, 2),
            "unet.down_blocks.0.attentions.0.proj_in.lokr_w2_b": (2, 6),
        },
        {
            "unet.down_blocks.0.resnets.0.conv1.lokr_w1": (2, 2),
            "unet.down_blocks.0.resnets.0.conv1.lokr_w2": (6, 4, 3, 3),
        },
    ],
    "diffusekrona": [
        {
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight": (2, 4),
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight": (6, 3),
        },
        {
            "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": (4, 2),
            "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight": (6, 2),
        },
    ],
    "sparse": [
        {
            "unet.mid_block.attentions.0.proj_in.weight.sparse_values": (3,),
            "unet.mid_block.attentions.0.proj_in.weight.sparse_gaps": torch.tensor([0, 4, 2], dtype=torch.uint8),
            "unet.mid_block.attentions.0.proj_in.weight.sparse_shape": torch.tensor([6, 4]),
            "text_encoder.text_model.final_layer_norm.bias.sparse_values": (1,),
            "text_encoder.text_model.final_layer_norm.bias.sparse_gaps": torch.tensor([3], dtype=torch.uint16),
            "text_encoder.text_model.final_layer_norm.bias.sparse_shape": torch.tensor([4]),
        },
    ],
    "sparse-values": [
        {"unet.conv_in.weight.sparse_values": (3,), "unet.conv_in.weight.sparse_shape": torch.tensor([6, 4, 3, 3])},
    ],
    "diffusers-legacy": [
        {
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight": (2, 4),
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight": (6, 2),
            "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight": (2, 4),
            "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight": (6, 2),
        },
        {
            "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight": (2, 4),
            "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight": (6, 2),
        },
        {
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight": (2, 4),
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.up.weight": (6, 2),
            "unet.mid_block.resnets.0.conv1.lora_A.weight": (2, 4, 3, 3),
            "unet.mid_block.resnets.0.conv1.lora_B.weight": (6, 2, 1, 1),
            "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight": (2, 4),
            "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight": (6, 2),
        },
    ],
    "": [
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (2, 4)},
        {"diffusion_model.blocks.0.attn.to_q.lora_down.weight": (2, 4)},
        {"base_model.model.unet.lora_A.weight": (2, 4)},
        {"lycoris_transformer_blocks_0_attn_to_q.lokr_w1": (2, 2)},
        {"model.diffusion_model.input_blocks.0.0.weight": (4, 4)},
        {"lora_te3_encoder_block_0.lora_down.weight": (2, 4)},
        {"emb_params": (1, 4)},
        {"mid_block.weight": (2, 2)},
        {"unet.mid_block.weight": (2, 2)},
        {},
    ],
}
# A file without positions says in its header how to find them.
METADATA = {
    "sparse-values": {
        "studio.sparse": '{"format": 1, "tensors": {"unet.conv_in.weight": {"threshold": 0.1, "digest": "0123456789abcdef"}}}'
    }
}
CASES = [(dialect, index) for dialect, fixtures in FIXTURES.items() for index in range(len(fixtures))]
READERS = {dialect.name: dialect for dialect in DIALECTS}
WRITERS = [dialect.name for dialect in DIALECTS if dialect.write is not None and "lora" in dialect.kinds]
SPARSE_WRITERS = [dialect.name for dialect in DIALECTS if dialect.write is not None and "sparse" in dialect.kinds]


def tensors_of(fixture: dict, fill=torch.ones) -> dict[str, torch.Tensor]:
    """A fixture's tensors: as they are, or filled where it gives a shape."""
    return {key: value if isinstance(value, torch.Tensor) else fill(value) for key, value in fixture.items()}


def test_every_dialect_has_fixtures_and_a_name_of_its_own():
    assert set(FIXTURES) - {""} == {dialect.name for dialect in DIALECTS}
    assert len(READERS) == len(DIALECTS)


@pytest.mark.parametrize(("owner", "index"), CASES)
def test_a_detector_knows_its_own_files_and_refuses_all_others(owner, index):
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors_of(FIXTURES[owner][index]).items()}
    assert [dialect.name for dialect in DIALECTS if dialect.detect(shapes)] == ([owner] if owner else [])


@pytest.mark.parametrize(("owner", "index"), [case for case in CASES if case[0]])
def test_every_tensor_of_a_file_is_read(owner, index, tmp_path):
    torch.manual_seed(0)
    tensors = tensors_of(FIXTURES[owner][index], lambda shape: 0.5 + torch.rand(shape))
    is_exact = READERS[owner].is_exact
    path = tmp_path / "adapter.safetensors"
    save_file(tensors, path, METADATA.get(owner))
    adapter = load_adapter(path)
    read = [tensor.flatten().sort().values for tensor in adapter.named_tensors().values()]  # DiffuseKronA's are transposed
    alphas = [torch.tensor([alpha]) for alpha in adapter.alphas()]
    for key, tensor in tensors.items():
        if key.endswith("alpha") or not is_exact(key):
            assert any(
                torch.equal(tensor.flatten().sort().values, other) for other in (alphas if key.endswith("alpha") else read)
            )
    assert len(read) == sum(not is_exact(key) for key in tensors)


@pytest.mark.parametrize("owner", [name for name in FIXTURES if name])
def test_a_key_of_another_dialect_in_a_file_is_never_lost(owner, tmp_path):
    from studio.pipelines.errors import AdapterFileError

    for other, fixtures in FIXTURES.items():
        for foreign in fixtures:
            mine = FIXTURES[owner][0]
            if other == owner or not foreign or (owner, other) in ALLOWED_MIXTURES:
                continue
            path = tmp_path / "mixed.safetensors"
            save_file(tensors_of(mine | foreign), path, METADATA.get(owner))
            with pytest.raises(AdapterFileError):
                load_adapter(path)


# diffusers itself wrote files with old and PEFT keys side by side; LyCORIS' files are kohya's with further kinds of layers.
# DiffuseKronA's keys are those of an old LoRA, so such a mixture is one kind of file or the other by its shapes.
OLD_PROCESSORS = ("diffusers-legacy", "diffusekrona")
ALLOWED_MIXTURES = {
    *(("diffusers-legacy", "peft"), ("peft", "diffusers-legacy")),
    *(("lycoris", "kohya"), ("kohya", "lycoris")),
    *((one, other) for one in OLD_PROCESSORS for other in OLD_PROCESSORS),
    ("sparse-values", "sparse"),  # a layer that brings its positions may stand beside one whose positions the header knows
}


def float16(adapter: Adapter) -> Adapter:
    return adapter.to(dtype=torch.float16)


@pytest.mark.parametrize("dialect", WRITERS)
@pytest.mark.parametrize("family", TINY_MODELS)
@pytest.mark.parametrize("kind", ["lora", "mixed ranks", "rslora", "dora"])
def test_saved_and_loaded_is_the_same_adapter_and_saved_again_the_same_file(dialect, family, kind, tmp_path):
    model = TINY_MODELS[family]()
    adapter = {
        "lora": lambda: random_adapter(model),
        "mixed ranks": lambda: mixed_ranks(model),
        "rslora": lambda: random_adapter(model, use_rslora=True),
        "dora": lambda: mixed_ranks(model, dora=True),
    }[kind]()
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_adapter(adapter, first, dialect)
    read = load_adapter(first)
    assert read.content_hash() == float16(adapter).content_hash()
    assert (read.info.name, read.info.family, read.kinds()) == (adapter.info.name, family, adapter.kinds())
    assert len(load_file(first)) == len(read.named_tensors()) + len(read.patches) * (dialect in ("kohya", "lycoris"))
    save_adapter(read, second, dialect)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("source", WRITERS)
@pytest.mark.parametrize("target", WRITERS)
def test_an_adapter_survives_every_change_of_dialect(source, target, tmp_path):
    adapter = float16(mixed_ranks(TINY_MODELS["sdxl"]()))
    save_adapter(adapter, tmp_path / "a.safetensors", source)
    save_adapter(load_adapter(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", target)
    assert load_adapter(tmp_path / "b.safetensors").content_hash() == adapter.content_hash()


@pytest.mark.parametrize("dialect", WRITERS)
def test_alphas_stay_exact_where_float16_has_no_such_number(dialect, tmp_path):
    model = TINY_MODELS["embedded"]()
    adapter = random_adapter(model, rank=3, alpha=1.1, targets={"unet": r".*to_q"})
    save_adapter(adapter, tmp_path / "a.safetensors", dialect)
    for patch in load_adapter(tmp_path / "a.safetensors").patches.values():
        assert patch.settings()["scale"] == pytest.approx(1.1 / 3, rel=1e-6)


@pytest.mark.parametrize("dialect", WRITERS)
def test_the_family_can_be_named_when_the_adapter_does_not_know_it(dialect, tmp_path):
    adapter = random_adapter(TINY_MODELS["sd15"](), targets={"text_encoder": r".*q_proj"})
    nameless = Adapter(replace(adapter.info, family=None), adapter.patches)
    path = tmp_path / "a.safetensors"
    save_adapter(nameless, path, dialect, family=family_named("sd15"))
    assert load_adapter(path).info.family == "sd15"


@pytest.mark.parametrize("dialect", SPARSE_WRITERS)
@pytest.mark.parametrize("family", TINY_MODELS)
def test_a_sparse_adapter_is_saved_and_loaded_the_same_and_saved_again_the_same_file(dialect, family, tmp_path):
    adapter = sparse_adapter(TINY_MODELS[family](), everything=True)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save_adapter(adapter, first, dialect)
    read = load_adapter(first)
    assert read.content_hash() == float16(adapter).content_hash()
    assert (read.info.family, read.info.type) == (family, "sparse")
    assert read.patches.keys() == adapter.patches.keys()
    save_adapter(read, second, dialect)
    assert first.read_bytes() == second.read_bytes()
