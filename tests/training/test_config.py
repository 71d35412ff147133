"""The configuration: one schema, errors that help, defaults per family, equality on resume."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.pipelines.errors import ConfigError
from studio.pipelines.families import FAMILIES, ModelFamily, family_named
from studio.training.config import (
    MAY_CHANGE_ON_RESUME,
    TrainConfig,
    config_difference,
    config_hash,
    config_warnings,
    dump_toml,
    flat_settings,
    load_config,
    options,
    resolve_defaults,
)
from studio.training.config.methods import PRESETS
from studio.training.config.options import reference_table

BASIC = {"concept.images": "photos", "concept.class_noun": "dog"}


def make(**overrides: object) -> TrainConfig:
    """A valid configuration with `section__key` settings on top."""
    return load_config(None, {**BASIC, **{name.replace("__", "."): value for name, value in overrides.items()}})


def message(overrides: dict[str, object]) -> str:
    """The error's text for overrides on a valid configuration."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, {**BASIC, **overrides})
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("optimizer.learning_rat", "did you mean optimizer.learning_rate?"),
        ("optimizer.lr", "did you mean optimizer.learning_rate?"),
        ("learning_rate", "learning_rate belongs to [optimizer]"),
        ("data.rank", "rank belongs to [adapter]"),
        ("adapter.network_dim", "did you mean adapter.rank?"),
        ("conecpt.images", "did you mean [concept]?"),
        ("adapter.zzz", "[adapter] knows method, rank"),
        ("concept", "write its keys below it"),
    ],
)
def test_unknown_key_names_the_right_one(key: str, expected: str) -> None:
    assert expected in message({key: "1"})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("optimizer.learning_rate", "fast", "optimizer.learning_rate = 'fast' must be a number"),
        ("optimizer.learning_rate", "nan", "must be a finite number"),
        ("optimizer.learning_rate", "0", "must be more than 0"),
        ("adapter.rank", "8.5", "adapter.rank = 8.5 must be a whole number"),
        ("adapter.rank", True, "must be a whole number"),
        ("adapter.dora", "maybe", "must be true or false"),
        ("loss.prior", "class-image", "did you mean class-images?"),
        ("concept.class_noun", " ", "is empty"),
        ("concept.token", "two words", "one word"),
        ("concept.caption_templates", ["a photo"], "lacks {token}"),
        ("concept.caption_templates", [], "caption_templates is empty"),
        ("run.sample_prompts", ["a {tokn}"], "unknown placeholder {tokn}"),
        ("run.name", "../../etc", "must be 1 to 80 characters"),
        ("optimizer.beta2", 1.0, "less than 1"),
        ("run.seed", -1, "at least 0"),
    ],
)
def test_bad_value_says_key_value_and_expectation(key: str, value: object, expected: str) -> None:
    assert expected in message({key: value})


def test_missing_class_noun_explains_itself() -> None:
    with pytest.raises(ConfigError, match="class_noun is missing: the everyday word") as caught:
        load_config(None, {"concept.images": "photos"})
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match=r"images is missing[^\n]*\n.*class_noun is missing"):
        load_config(None, {})


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[concept]\nimages = "a"\nclass_noun = "dog"\nnoun = 1\n[adapter]\nrank = 0\n[trian]\nx = 1\n')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{path}: ") for line in lines)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[concept]\nimages = \n", "at line 2, column 10"),
        (b'[concept]\nimages = "C:\\Users\\me"\n', "single quotes"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"concept = 3\n", "concept must be a section"),
    ],
)
def test_bad_toml_says_where(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_toml_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.toml")


def test_overrides_are_stronger_than_the_file_and_typed(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('\ufeff[concept]\nimages = "a"\nclass_noun = "cat"\n[adapter]\nrank = 4\nalpha = 2\n')
    config = load_config(
        path,
        {"adapter.rank": "8", "adapter.alpha": "default", "optimizer.learning_rate": "1e-4", "adapter.dora": "True",
         "run.sample_prompts": '["a {token}, {class_noun}", "b"]', "concept.caption_templates": "a {token}, or two"},
    )  # fmt: skip
    assert (config.adapter.rank, config.adapter.alpha, config.adapter.dora) == (8, None, True)
    assert config.optimizer.learning_rate == 1e-4
    assert config.run.sample_prompts == ("a {token}, {class_noun}", "b")
    assert config.concept.caption_templates == ("a {token}, or two",)


@pytest.mark.parametrize("noun", ["dog", "stuffed animal", "Straßenbahn 🐕", "o'clock"])
def test_toml_round_trip(tmp_path: Path, noun: str) -> None:
    config = make(concept__class_noun=noun, concept__images='a "quoted"\\path\t\x7f', run__seed=7)
    for written in (config, resolve_defaults(config, FAMILIES[0], 5)):
        path = tmp_path / "c.toml"
        path.write_text(dump_toml(written), encoding="utf-8")
        assert load_config(path) == written


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_resolved_defaults_are_complete_and_consistent(family: ModelFamily) -> None:
    for num_images in (1, 5, 300):
        config = resolve_defaults(make(), family, num_images)
        of_methods = {preset.section for preset in PRESETS.values()}
        unset = [key for key, value in flat_settings(config).items() if value is None and key.split(".")[0] not in of_methods]
        assert unset == ["data.cache_dir"]
        assert config.schedule.warmup_steps < config.schedule.steps
        assert family.train.min_steps <= config.schedule.steps <= family.train.max_steps
        assert config.adapter.alpha / config.adapter.rank == family.train.alpha / family.train.rank
        assert config.data.resolution % config.data.bucket_step == 0 or config.data.resolution >= config.data.bucket_step
        assert resolve_defaults(config, family, num_images) == config


def test_warmup_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="warmup_steps = 500 is not shorter than the run of 500 steps"):
        resolve_defaults(make(schedule__warmup_steps=500, schedule__steps=500), FAMILIES[0], 5)
    assert resolve_defaults(make(schedule__steps=1), FAMILIES[0], 5).schedule.warmup_steps == 0


def test_resolution_must_fit_the_family() -> None:
    with pytest.raises(ConfigError, match="data.resolution = 100 is not a multiple of 8.*use 96 or 104"):
        resolve_defaults(make(data__resolution=100), family_named("embedded"), 5)


def test_prodigy_finds_its_own_rate() -> None:
    config = resolve_defaults(make(optimizer__name="prodigy"), FAMILIES[0], 5)
    assert config.optimizer.learning_rate == 1.0


def test_warnings() -> None:
    config = make(concept__token="SKS")
    assert "rifle" in config_warnings(config, family_named("sd15"))[0]
    assert not config_warnings(config, family_named("embedded"))
    assert "class noun" in config_warnings(make(concept__token="dog"), family_named("sd15"))[0]


def test_hash_and_difference_agree_on_every_setting() -> None:
    old = make()
    changed = {"adapter.rank": 3, "concept.images": "elsewhere", "run.sample_every": 7, "loss.snr_gamma": 1.0}
    for key, value in changed.items():
        new = load_config(None, {**BASIC, key: value})
        difference = config_difference(old, new)
        assert bool(difference) == (key not in MAY_CHANGE_ON_RESUME)
        assert (config_hash(old) != config_hash(new)) == bool(difference)
    (change,) = config_difference(old, make(adapter__rank=3))
    assert str(change) == "adapter.rank: the default -> 3"
    assert set(flat_settings(old)) >= MAY_CHANGE_ON_RESUME


def test_every_setting_is_an_option_with_help() -> None:
    table = options()
    assert {option.key for option in table} == set(flat_settings(make()))
    assert len({option.flag for option in table}) == len(table)
    assert all(option.help.endswith((".", "house.")) for option in table)
    by_key = {option.key: option for option in table}
    assert by_key["optimizer.name"].flag == "--optimizer"
    assert by_key["loss.prior"].choices == ("none", "class-images", "base-output")
    assert by_key["run.sample_prompts"].multiple
    assert by_key["adapter.rank"].kind is int
    assert by_key["concept.images"].parameter == "images"


def test_written_reference_is_current() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "training-config.md"
    assert reference_table().strip() in page.read_text(encoding="utf-8")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        make().run.seed = 3  # type: ignore[misc]
