"""`studio inspect` and `studio export`."""

import json
import re
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
from studio.pipelines.adapters.conversion import dense_change
from studio.pipelines.adapters.merged_model import require_family, save_merged
from studio.pipelines.base_model import BaseModel, load_base
from studio.pipelines.errors import AdapterMismatchError, OutputError
from studio.pipelines.families import EMBEDDED, SD15
from tests.support.adapters import random_adapter, random_kronecker
from tests.support.sparse import sparse_adapter
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
        assert "belongs to --format merged" in str(run(export, adapter_path, "--strength", "0.5").exception)


class TestExportOfOtherKinds:
    """What has no LoRA inside: as it is, as a LoRA with its error, as differences."""

    @pytest.fixture
    def lokr_path(self, tmp_path) -> Path:
        path = tmp_path / "krona.safetensors"
        save_adapter(random_kronecker(tiny_embedded(), (4, 4)), path, "peft", dtype=torch.float32)
        return path

    def deltas(self, path: Path) -> dict:
        adapter = load_adapter(path)
        return {where: dense_change(patch, where, None, "x") for where, patch in adapter.patches.items()}

    def test_a_kronecker_adapter_goes_to_lycoris_by_itself(self, lokr_path):
        result = run(export, lokr_path, "--dtype", "float32")
        assert result.exit_code == 0, result.exception
        written = lokr_path.with_name("krona.lokr.safetensors")
        assert result.output.strip() == str(written)
        assert read_header(written).metadata["ss_network_module"] == "lycoris.kohya"
        assert load_adapter(written).content_hash() == load_adapter(lokr_path).content_hash()

    @pytest.mark.parametrize(("form", "type_name"), [("lora", "lora"), ("diff", "full")])
    def test_an_exact_other_form(self, form, type_name, lokr_path):
        result = run(export, lokr_path, "--format", form, "--dtype", "float32")
        assert result.exit_code == 0, result.exception
        written = lokr_path.with_name(f"krona.{form}.safetensors")
        assert load_adapter(written).info.type == type_name
        ours, theirs = self.deltas(lokr_path), self.deltas(written)
        for where, delta in ours.items():
            torch.testing.assert_close(theirs[where].reshape(delta.shape), delta, atol=1e-5, rtol=1e-5)
        assert ("energy kept 100.00%" in result.output) == (form == "lora")

    @pytest.mark.parametrize("option", [("--rank", 3), ("--energy", 0.8)])
    def test_a_smaller_lora_says_what_it_loses(self, option, lokr_path):
        result = run(export, lokr_path, "--format", "lora", "--dtype", "float32", *option)
        assert result.exit_code == 0, result.exception
        said = float(re.search(r"relative error ([\d.e-]+)", result.output)[1])
        ours, theirs = self.deltas(lokr_path), self.deltas(lokr_path.with_name("krona.lora.safetensors"))
        lost = sum((theirs[where].reshape(delta.shape) - delta).square().sum() for where, delta in ours.items())
        assert said == pytest.approx((lost / sum(delta.square().sum() for delta in ours.values())).sqrt().item(), rel=0.01)
        assert 0.05 < said < 1 and "worst layer" in result.output

    def test_an_exact_lora_that_is_larger_than_the_differences_says_so(self, tmp_path):
        path = tmp_path / "x.safetensors"
        save_adapter(random_kronecker(tiny_embedded(), (4, 4), targets={"unet": r".*attn1.to_q"}), path, "peft")
        assert "more than the" in run(export, path, "--format", "lora").output
        assert "more than the" not in run(export, path, "--format", "lora", "--rank", "2").output

    def test_a_dora_needs_its_base(self, base_dir, tmp_path):
        path = tmp_path / "x.safetensors"
        save_adapter(random_adapter(tiny_embedded(), dora=True, targets={"unet": r".*to_q"}), path, "kohya")
        assert "name it with --base" in str(run(export, path, "--format", "lora").exception)
        assert run(export, path, "--format", "diff", "--base", base_dir).exit_code == 0

    def test_a_sparse_adapter_as_a_lora_is_refused_where_little_is_left(self, tmp_path):
        path = tmp_path / "x.safetensors"
        save_adapter(sparse_adapter(tiny_embedded()), path, "sparse")
        assert re.search(r"keeps \d+% of what", str(run(export, path, "--format", "lora", "--rank", "1").exception))
        assert run(export, path, "--format", "lora", "--rank", "1", "--force").exit_code == 0
        result = run(export, path)
        assert (result.exit_code, load_adapter(path.with_name("x.diff.safetensors")).info.type) == (0, "full")

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (
                ("--format", "kohya"),
                "holds dora, lora patches, and this adapter has lokr ones. Export --format peft, --format lokr",
            ),
            (("--rank", "4"), "belong to --format lora"),
            (("--format", "lokr", "--base", "x"), "belongs to --format merged, lora, diff and sparse"),
            (("--format", "lora", "--energy", "90"), "a share between 0 and 1"),
        ],
    )
    def test_what_does_not_go_is_a_sentence_with_the_way_out(self, arguments, words, lokr_path):
        assert words in str(run(export, lokr_path, *arguments).exception)

    def test_a_lora_as_lokr_is_refused(self, adapter_path):
        assert "is for Kronecker adapters, and this one is lora" in str(run(export, adapter_path, "--format", "lokr").exception)

    def test_inspect_shows_its_factors(self, lokr_path):
        words = run(inspect, lokr_path).output
        assert "4×4" in words and "lokr (" in words and "PEFT / diffusers LoKr" in words
        assert json.loads(run(inspect, lokr_path, "--json").output)["factors"] == {"4×4": len(load_adapter(lokr_path).patches)}


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
