"""`studio compose` and `studio compare` as people call them: from plans and from flags, with the recipe in every picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from studio.cli.main import main
from studio.composition.plan_files import read_plan, write_plan
from studio.composition.strategies import STRATEGIES
from studio.pipelines.adapters import Route, load_adapter, merged_parameters, save_adapter
from studio.pipelines.base_model import load_base
from studio.pipelines.pictures import read_png, read_sidecar
from studio.workflows.compare import strategy_names
from tests.support.scenes import lora, plan_for
from tests.support.tiny_bases import tiny_base

PROMPT = "a cat, a dog"


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two adapters, a foreign one, and a plan."""
    root = tmp_path_factory.mktemp("compose")
    base = tiny_base("embedded", root / "base")
    for seed, name, noun in ((1, "cat", "mug"), (2, "dog", None)):
        made = lora(base, seed, trigger=name, targets={"unet": r".*attn.*"})
        named = replace(made, info=replace(made.info, name=name, class_noun=noun))
        save_adapter(named, root / f"{name}.safetensors", "kohya", dtype=torch.float32)
    foreign = replace(made, info=replace(made.info, family="sdxl"))
    save_adapter(foreign, root / "foreign.safetensors", "peft")
    plan = plan_for(
        2,
        prompt=PROMPT,
        base="base",
        entries=[{"adapter": "cat.safetensors", "strength": 0.8}, {"adapter": "dog.safetensors"}],
        strategy="composite",
        num_images=2,
        steps=2,
        seed=5,
        height=32,
        width=40,
    )
    write_plan(plan, root / "plan.yaml")
    return root


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        return Result(int(ended.value.code or 0), printed.out, printed.err)

    return call


def test_a_picture_can_be_made_again_from_itself(run: Run, folder: Path, tmp_path: Path):
    first = run("compose", folder / "plan.yaml", "--device", "cpu", "-o", tmp_path / "one")
    assert first.code == 0, first.err
    pictures = [Path(line) for line in first.out.splitlines()]
    assert len(pictures) == 3 and pictures[-1].name.endswith("contact-sheet.png")
    record, text = read_png(pictures[1])
    assert record is not None and text is not None and record == read_sidecar(pictures[1])
    recipe = record.recipe
    assert recipe["seed"] == 6 and recipe["strategy"] == {"name": "composite"}
    assert recipe["base_sha256"] == load_base(folder / "base").content_hash
    assert [entry["adapter"] for entry in recipe["entries"]] == ["cat.safetensors", "dog.safetensors"]
    assert all(len(entry["sha256"]) == 64 for entry in recipe["entries"])
    assert str(folder) not in json.dumps(record.to_json()), "folders are nobody's business"
    assert [(use.name, use.strength) for use in record.adapters] == [("cat", 0.8), ("dog", 1.0)]
    assert text.settings["Composition"] == "composite"
    for source, name in ((pictures[1], "two"), (pictures[1].with_suffix(".json"), "three")):
        again = run("compose", source, "--adapters-dir", folder, "--base", folder / "base", "-o", tmp_path / name)
        assert again.code == 0, again.err
        (copy,) = [Path(line) for line in again.out.splitlines()]
        assert opened(copy).tobytes() == opened(pictures[1]).tobytes()
        assert copy.name.split("-", 1)[1] == pictures[1].name.split("-", 1)[1], "the same recipe has the same hash"


def test_another_file_of_the_same_name_is_refused(run: Run, folder: Path, tmp_path: Path):
    made = run("compose", folder / "plan.yaml", "-n", "1", "-o", tmp_path / "one")
    picture = Path(made.out.strip())
    other = tmp_path / "other"
    other.mkdir()
    for name, source in (("cat", "dog"), ("dog", "dog")):
        (other / f"{name}.safetensors").write_bytes((folder / f"{source}.safetensors").read_bytes())
    refused = run("compose", picture, "--adapters-dir", other, "--base", folder / "base", "-o", tmp_path / "two")
    assert refused.code == 2 and "entry 1 (cat): " in refused.err and "is not the file that the plan means" in refused.err
    unknown = run("compose", picture, "--base", folder / "base", "-o", tmp_path / "two")
    assert unknown.code == 3 and "entry 1 (cat): there is no adapter file cat.safetensors" in unknown.err


def test_flags_make_a_plan(run: Run, folder: Path, tmp_path: Path):
    flags = ["-p", PROMPT, "-a", f"{folder / 'cat.safetensors'}:0.5", "-a", folder / "dog.safetensors", "--base", folder / "base"]
    flags += ["--words", "-", "--words", "dog", "--box", "0,0,0.5,1", "--strategy", "merge", "--set", "method=sum", "--seed", "3"]
    saved = run("compose", *flags, "--save-plan", tmp_path / "plan.json")
    assert saved.code == 0, saved.err
    plan = read_plan(tmp_path / "plan.json")
    assert plan.prompt == PROMPT and plan.seed == 3
    assert [entry.strength for entry in plan.entries] == [0.5, 1.0]
    assert [entry.words for entry in plan.entries] == [None, "dog"]
    assert plan.entries[0].region is not None and plan.entries[0].region.box == (0, 0, 0.5, 1)
    changed = run("compose", folder / "plan.yaml", "--strategy", "switch", "--steps", "7", "--save-plan", tmp_path / "b.yaml")
    assert changed.code == 0 and read_plan(tmp_path / "b.yaml").strategy.name == "switch"
    assert read_plan(tmp_path / "b.yaml").steps == 7


def test_mistakes_are_sentences(run: Run, folder: Path, tmp_path: Path):
    plan = folder / "plan.yaml"
    foreign = run("compose", plan, "-a", folder / "foreign.safetensors")
    assert foreign.code == 2 and "entry 3 (foreign): The adapter" in foreign.err
    for flags, sentence in (
        (["--strategy", "switsh"], "Did you mean switch?"),
        (["--set", "weight=equal"], "strategy composite: weight is no key here; did you mean"),
        (["--set", "weights=most"], "weights must be one of equal, prompt, trigger"),
        (["--set", "weights"], "should be KEY=VALUE"),
        (["--words", "dog"], "more --words or --box than --adapter"),
        (["-a", "x.safetensors", "--box", "1,2"], "four numbers"),
        (["--scheduler", "eular"], "Did you mean 'euler'"),
        (["-a", "x.safetensors", "--words", "fish"], 'entry 3 (x): its words "fish" are not in the prompt'),
        (["--strategy", "merge", "--set", "density=0.5"], "density belongs to method ties or dare or magnitude"),
    ):
        result = run("compose", plan, *flags)
        assert result.code == 2 and sentence in result.err, result.err
    assert "There is nothing to draw" in run("compose").err
    broken = tmp_path / "nan.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "cat.safetensors")
    tensors[next(iter(tensors))].view(-1)[0] = float("nan")
    save_file(tensors, broken)
    assert "entry 3 (nan): " in run("compose", plan, "-a", broken).err


def test_the_merge_as_a_file(run: Run, folder: Path, tmp_path: Path):
    one = tmp_path / "both.safetensors"
    exported = run("compose", folder / "plan.yaml", "--strategy", "merge", "--export", one)
    assert exported.code == 0 and exported.out.strip() == str(one), exported.err
    base = load_base(folder / "base")
    merged = merged_parameters(base.components(), load_adapter(one))
    cat, dog = (load_adapter(folder / f"{name}.safetensors") for name in ("cat", "dog"))
    for path, weight in merged_parameters(base.components(), cat, 0.8).items():
        before = base.components()[path.component].get_submodule(path.module).weight
        expected = weight + merged_parameters(base.components(), dog)[path] - before
        torch.testing.assert_close(merged[path], expected, atol=2e-3, rtol=2e-3)  # the file is float16
    assert Route(load_adapter(one)).adapter.info.trigger == "cat, dog"
    refused = run("compose", folder / "plan.yaml", "--export", tmp_path / "x.safetensors")
    assert refused.code == 2 and "Only merge, selma and ziplora make one adapter" in refused.err


def test_conflicts_before_drawing(run: Run, folder: Path):
    report = run("compose", folder / "plan.yaml", "--conflicts")
    assert report.code == 0, report.err
    lines = report.out.splitlines()
    assert lines[0].startswith("cat and dog: crosstalk ") and lines[-1].startswith("suggested strategy: ")


def test_compare_draws_every_strategy_with_a_score(run: Run, folder: Path, tmp_path: Path):
    out = tmp_path / "compared"
    chosen = ["merge", "selma", "switch", "weighted-switch", "composite", "regional", "cmlora", "loratorio"]
    result = run("compare", folder / "plan.yaml", "--strategies", ",".join(chosen), "-o", out)
    assert result.code == 0, result.err
    table = json.loads((out / "comparison.json").read_text())
    names = [row["strategy"] for row in table["rows"]]
    assert names == ["no adapters", *chosen]
    assert strategy_names("all") == [kind.name for kind in STRATEGIES]
    assert [row["passes"] for row in table["rows"]] == [1, 1, 1, 1, 1, 2, 1, 2, 3]
    assert all(len(row["scores"]) == 2 and row["seeds"] == [5, 6] for row in table["rows"])
    assert all(0 <= score <= 1 for row in table["rows"] for score in row["scores"])
    pictures = {name: sorted((out / name.replace(" ", "-")).glob("*.png")) for name in names}
    assert {len(found) for found in pictures.values()} == {2}
    record, _ = read_png(pictures["switch"][0])
    assert record is not None and record.recipe["strategy"] == {"name": "switch"} and record.seed == 5
    bare, _ = read_png(pictures["no adapters"][0])
    assert bare is not None and "entries" not in bare.recipe and bare.adapters == ()
    assert opened(out / "grid.png").height > 6 * 32
    assert result.out.splitlines()[-1] == str(out / "grid.png")


def test_compare_lists_what_cannot_draw_the_plan(run: Run, folder: Path, tmp_path: Path):
    flags = ["-p", PROMPT, "-a", folder / "cat.safetensors", "--box", "0,0,0.5,1", "--base", folder / "base", "--seed", "1"]
    flags += ["--steps", "1", "--size", "32", "--scorer", "none", "--strategies", "merge,switch", "-o", tmp_path]
    result = run("compare", *flags)
    assert result.code == 0, result.err
    assert "switch was left out: The strategy switch knows no regions" in result.err
    rows = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert rows[2]["refused"] and rows[1]["score"] is None
    assert "switch " not in result.out
