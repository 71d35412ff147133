"""Plans from YAML, JSON and pictures, and back."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from studio.composition.plan import CompositionPlan
from studio.composition.plan_checks import plan_problems
from studio.composition.plan_sentences import plan_sentences
from studio.pipelines.errors import ConfigError, MissingFileError
from studio.pipelines.files import atomic_write_text
from studio.pipelines.pictures import read_png

MAX_BYTES = 4 * 2**20
RECIPE_KEY = "recipe"


def read_plan(path: Path) -> CompositionPlan:
    """The plan in a YAML or JSON file, in a picture's sidecar, or in the picture itself.

    Raises:
        MissingFileError: there is no file.
        ConfigError: it holds no plan, or a wrong one; says all that is wrong, a line each.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no plan {path}.")
    if path.suffix.lower() == ".png":
        record, _ = read_png(path)
        values: Any = None if record is None else dict(record.recipe)
        if not values:
            raise ConfigError(f"{path} was not made from a plan: the picture has none in it.")
    else:
        values = _read_values(path)
        if isinstance(values, Mapping) and RECIPE_KEY in values and "entries" not in values:
            values = values[RECIPE_KEY]  # a picture's sidecar
    return plan_from_values(values, source=str(path))


def write_plan(plan: CompositionPlan, path: Path) -> None:
    """Write `plan` to a file, as JSON if its name ends in .json and as YAML otherwise, in one step."""
    atomic_write_text(path, plan_text(plan, as_json=path.suffix.lower() == ".json"))


def plan_text(plan: CompositionPlan, *, as_json: bool = False) -> str:
    """The plan as YAML or JSON; settings at their defaults are left out."""
    values = plan_values(plan)
    if as_json:
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def plan_values(plan: CompositionPlan) -> dict[str, Any]:
    """The plan as plain values: what YAML and JSON hold. What is at its default is left out, the version is not."""
    values = plan.model_dump(mode="json", exclude_defaults=True)
    strategy = {"strategy": plan.strategy.model_dump(mode="json")}
    return {"version": plan.version, **{key: value for key, value in values.items() if key != "version"}} | strategy


def plan_from_values(values: Any, source: str | None = None) -> CompositionPlan:
    """A plan of plain values.

    Args:
        source: names the file in the error.

    Raises:
        ConfigError: something is wrong; says all that is, a line each.
    """
    where = "" if source is None else f"{source}: "
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}A plan is a table of keys and values; it begins with a line such as prompt: a cat and a mug.")
    try:
        plan = CompositionPlan.model_validate(dict(values))
    except ValidationError as error:
        problems = plan_sentences(error.errors(include_url=False), values)
    else:
        problems = plan_problems(plan)
        if not problems:
            return plan
    raise ConfigError("\n".join(f"{where}{text}" for text in problems))


def yaml_values(text: str) -> Any:
    """The values in a YAML text; a key that stands twice in a table is a `yaml.YAMLError`, as all that is no YAML."""
    return _PlanLoader(text).get_single_data()


def _read_values(path: Path) -> Any:
    data = path.read_bytes()
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} is too large for a plan: {len(data) / 2**20:.0f} MB.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a UTF-8 text file.") from error
    try:
        if path.suffix.lower() == ".json":
            return json.loads(text, object_pairs_hook=_without_repeats)
        return yaml_values(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid {'JSON' if path.suffix.lower() == '.json' else 'YAML'}: {problem}") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands there twice.")
    return values


class _PlanLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which by itself would silently keep the last of two equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A table whose keys are all different."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)
