"""`studio inspect` and `studio export`."""

import json
from pathlib import Path

import pytest
import torch
import typer
from diffusers import StableDiffusionPipeline
from typer.testing import CliRunner

from studio.cli.export import export
from studio.cli.inspect import inspect
from studio.cli.main import make_command
from studio.pipelines.adapters import AdapterInfo, Route, load_adapter, patched, read_header, save_adapter
from studio.pipelines.adapters.merged_model import require_family, save_merged
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.errors import AdapterMismatchError, OutputError
from studio.pipelines.families import EMBEDDED, SD15
from tests.support.adapters import random_adapter
from tests.support.tiny_models import tiny_embedded, tiny_sdxl

INFO = AdapterInfo(name="my [red]robot[/red]", family="embedded", trigger="ohwx robot", class_noun="robot", roles=("subject",))


@pytest.fixture
def adapter_path(tmp_path: Path) -> Path:
    path = tmp_path / "robot.safetensors"
    save_adapter(random_adapter(tiny_embedded(), rank=4, alpha=2.0, info=INFO), path, "peft")
    return path


def run(function, *arguments: object):
    app = typer.Typer()
    app.command()(function)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class TestInspect:
    def test_says_what_the_file_is(self, adapter_path):
        result = run(inspect, adapter_path, "--metadata")
        assert result.exit_code == 0, result.output
        for words in (
            "my [red]robot[/red]",
            "lora",
            "PEFT",
            "ohwx robot",
            "subject",
            EMBEDDED.title,
            "mid_block",
            "text_encoder",
        ):
            assert words in result.output
        assert "modelspec.title" in result.output

    def test_as_json_says_all_of_it(self, adapter_path):
        facts = json.loads(run(inspect, adapter_path, "--json").output)
        assert facts["dialect"] == "peft"
        assert facts["ranks"] == {"4": len(load_adapter(adapter_path).patches)}
        assert facts["alphas"] == {"2.0": facts["ranks"]["4"]}
        assert facts["info"]["trigger"] == "ohwx robot"
        assert facts["num_parameters"] == load_adapter(adapter_path).num_parameters()
        assert facts["num_tensors"] == len(read_header(adapter_path).tensors)
        assert facts["file_bytes"] == adapter_path.stat().st_size
        assert facts["content_hash"] == load_adapter(adapter_path).content_hash()
        assert sum(sum(parts.values()) for parts in facts["targets"].values()) == facts["ranks"]["4"]
        assert facts["targets"]["unet mid_block"]["self-attention"] == 4

    def test_a_kohya_sdxl_file(self, tmp_path):
        path = tmp_path / "sdxl.safetensors"
        save_adapter(random_adapter(tiny_sdxl()), path, "kohya", redact="minimal")
        facts = json.loads(run(inspect, path, "--json").output)
        assert (facts["dialect"], facts["info"]["family"], facts["info"]["name"]) == ("kohya", "sdxl", "sdxl")
        assert facts["targets"]["text_encoder_2"] == {"self-attention": 8, "feed-forward": 4}

    @pytest.mark.parametrize(("content", "code"), [(None, 3), (b"garbage", 2)])
    def test_what_is_no_adapter_is_one_sentence_and_a_code(self, content, code, tmp_path, capsys):
        path = tmp_path / "x.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(SystemExit) as caught:
            make_command()(args=["inspect", str(path)], prog_name="studio")
        assert caught.value.code == code
        assert str(path) in capsys.readouterr().err


class TestExport:
    @pytest.mark.parametrize("dialect", ["peft", "kohya"])
    def test_writes_another_format_beside_the_file(self, dialect, adapter_path):
        result = run(export, adapter_path, "--format", dialect, "--redact", "private")
        assert result.exit_code == 0, result.output
        written = adapter_path.with_name(f"robot.{dialect}.safetensors")
        assert result.output.strip() == str(written)
        assert load_adapter(written).content_hash() == load_adapter(adapter_path).content_hash()
        assert load_adapter(written).info == load_adapter(adapter_path).info

    def test_will_not_write_over_what_it_reads(self, adapter_path):
        before = adapter_path.read_bytes()
        result = run(export, adapter_path, "--output", adapter_path)
        assert "is the file that is read" in str(result.exception)
        assert adapter_path.read_bytes() == before

    def test_options_of_merged_alone_are_refused_elsewhere(self, adapter_path):
        assert "belong to --format merged" in str(run(export, adapter_path, "--strength", "0.5").exception)


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory) -> Path:
    """A tiny base model as a diffusers folder."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tiny_embedded().pipeline().save_pretrained(folder)
    return folder


def draw(pipeline: StableDiffusionPipeline, prompt: str = "a red cat") -> torch.Tensor:
    """Latents: the tiny decoder makes next to nothing of them."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    latents = pipeline(prompt, num_inference_steps=2, height=64, width=64, generator=generator, output_type="latent")
    return torch.as_tensor(latents.images)


@pytest.mark.filterwarnings("ignore")
class TestMerged:
    @pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 0.01)])
    def test_is_a_model_that_diffusers_draws_the_same_with(self, dtype, tolerance, adapter_path, base_dir, tmp_path):
        arguments = ("--format", "merged", "--base", base_dir, "--strength", "0.5", "--dtype", dtype)
        result = run(export, adapter_path, *arguments, "--output", tmp_path / "merged")
        assert result.exit_code == 0, (result.output, result.exception)
        merged = StableDiffusionPipeline.from_pretrained(tmp_path / "merged")
        base: BaseModel = load_base(base_dir)
        with patched(base.components(), [Route(load_adapter(adapter_path), 0.5)]):
            expected = draw(base.diffusers_pipeline())
        plain = draw(base.diffusers_pipeline())
        torch.testing.assert_close(draw(merged), expected, atol=tolerance, rtol=0)
        assert (expected - plain).abs().max() > 10 * tolerance
        assert not [entry for entry in tmp_path.iterdir() if entry.name.endswith(".part")]

    def test_leaves_the_base_as_it_was_and_no_half_folder(self, adapter_path, base_dir, tmp_path):
        base = load_base(base_dir)
        before = {name: tensor.clone() for name, tensor in base.unet.state_dict().items()}
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "file").write_bytes(b"")
        for folder, words in ((tmp_path / "taken", "is there already"), (tmp_path / "taken" / "file" / "x", "cannot be written")):
            with pytest.raises(OutputError, match=words):
                save_merged(base, [(load_adapter(adapter_path), 1.0)], folder)
        assert all(torch.equal(tensor, before[name]) for name, tensor in base.unet.state_dict().items())

    def test_an_adapter_of_another_family_is_refused(self, adapter_path):
        with pytest.raises(AdapterMismatchError, match=f"made for {EMBEDDED.title} and the base model is {SD15.title}"):
            require_family(load_adapter(adapter_path), SD15)
