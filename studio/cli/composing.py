"""What `studio compose` and `studio compare` share: a plan from a file and from flags, opened on its base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio.cli.drawing import Precision, placement, say
from studio.cli.generate import parse_adapter, parse_size
from studio.pipelines.errors import UserError

if TYPE_CHECKING:
    from studio.composition.plan import CompositionPlan
    from studio.pipelines.base_model import BaseModel
    from studio.workflows.calibrate import Calibrator
    from studio.workflows.compose import OpenedPlan

PlanFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="[PLAN]",
        help="A plan as YAML or JSON, or a picture that was made from one. Flags are stronger than the file.",
        show_default=False,
    ),
]
Prompt = Annotated[str | None, typer.Option("--prompt", "-p", help="What to draw.", show_default=False)]
Adapter = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        "-a",
        metavar="FILE[:STRENGTH]",
        help="An adapter file and how strongly it acts. Repeat for several; they come after those of the plan.",
        show_default=False,
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Option(
        help="The words of the prompt that an adapter is for: the first --words belong to the first --adapter, and so on; "
        "'-' for none. By default its trigger words.",
        show_default=False,
    ),
]
Box = Annotated[
    list[str] | None,
    typer.Option(
        metavar="L,T,R,B",
        help="Where an adapter acts, in the same order, as fractions of the canvas: 0,0,0.5,1 is the left half; '-' for all.",
        show_default=False,
    ),
]
Negative = Annotated[str | None, typer.Option(help="What to keep away from.", show_default=False)]
NumImages = Annotated[
    int | None, typer.Option("--num-images", "-n", min=1, help="Pictures, with seeds in a row.", show_default=False)
]
Seed = Annotated[
    int | None, typer.Option(help="Seed of the first picture. Random if neither this nor the plan says.", show_default=False)
]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; 30 by default.", show_default=False)]
Base = Annotated[
    str | None,
    typer.Option(
        help="Base model: a diffusers folder, a .safetensors checkpoint or a hub id. By default the plan's, or the small model "
        "that comes with the studio.",
        show_default=False,
    ),
]
StrengthUnit = Annotated[
    str | None,
    typer.Option(
        help="What strengths mean: raw, as the file has it, or calibrated, the same measured effect for every kind of adapter; "
        "see 'studio calibrate'.",
        show_default=False,
    ),
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting of the strategy, such as method=ties.", show_default=False),
]
AdaptersDir = Annotated[
    list[Path] | None,
    typer.Option(help="A folder to look for adapter files in, besides the plan's own and this one.", show_default=False),
]


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What was said on the command line; None is left to the plan."""

    prompt: str | None
    adapters: Sequence[str]
    words: Sequence[str]
    boxes: Sequence[str]
    negative: str | None
    num_images: int | None
    seed: int | None
    steps: int | None
    guidance: float | None
    size: str | None
    scheduler: str | None
    base: str | None
    strategy: str | None = None
    settings: Sequence[str] = ()
    strength_unit: str | None = None


def plan_of(path: Path | None, flags: Flags) -> CompositionPlan:
    """The plan in the file, changed by the flags; without a file, made of the flags alone."""
    import secrets

    from studio.composition.plan_files import plan_from_values, plan_values, read_plan

    values: dict[str, Any] = {} if path is None else plan_values(read_plan(path))
    width, height = parse_size(flags.size)
    given = {
        "prompt": flags.prompt,
        "strength_unit": flags.strength_unit,
        "negative_prompt": flags.negative,
        "num_images": flags.num_images,
        "seed": flags.seed,
        "steps": flags.steps,
        "guidance_scale": flags.guidance,
        "scheduler": flags.scheduler,
        "base": flags.base,
        "width": width,
        "height": height,
    }
    values |= {key: value for key, value in given.items() if value is not None}
    if "prompt" not in values:
        raise UserError('There is nothing to draw: give a plan, or --prompt "a cat and a dog" with an --adapter for each.')
    if path is None and flags.seed is None:
        values["seed"] = secrets.randbelow(2**32)
    if flags.base is not None:
        values.pop("base_sha256", None)
    values["entries"] = [*values.get("entries", []), *_entries(flags)]
    if flags.strategy is not None or flags.settings:
        present = values.get("strategy", {"name": "merge"})
        kept = present if flags.strategy in (None, present["name"]) else {"name": flags.strategy}
        values["strategy"] = {**kept, **_settings(flags.settings)}
    return plan_from_values(values)


def open_plan_here(
    plan: CompositionPlan,
    plan_file: Path | None,
    adapters_dirs: Sequence[Path],
    device: str,
    dtype: Precision,
    scorer: str = "guide",
) -> OpenedPlan:
    """Check the plan's files and sampler, then load its base model and adapters, and say what is to be noted.

    `scorer` measures the adapters of a plan with calibrated strengths.
    """
    from studio.pipelines.base_model import load_base
    from studio.pipelines.denoising import scheduler_title
    from studio.workflows.compose import check_plan_files, open_plan

    folders = [*([plan_file.parent] if plan_file is not None else []), Path(), *adapters_dirs]
    if plan.scheduler is not None:
        scheduler_title(plan.scheduler)  # what is wrong is told before a large model is loaded
    check_plan_files(plan, folders)
    place, weights = placement(device, dtype)
    base = _base_path(plan.base, plan_file)
    model = load_base(base, dtype=weights, device=place)
    return open_plan(plan, model, folders, _calibrator(plan, model, scorer))


def _calibrator(plan: CompositionPlan, base: BaseModel, scorer: str) -> Calibrator | None:
    if plan.strength_unit == "raw":
        return None
    from studio.pipelines.scoring import load_scorer
    from studio.workflows.calibrate import Calibrator, calibrations_dir

    return Calibrator(base, load_scorer(scorer), calibrations_dir(), say=say)


def note(texts: Sequence[str]) -> None:
    """Each as a note on standard error."""
    for text in texts:
        say(f"note: {text}")


def _base_path(base: str, plan_file: Path | None) -> str:
    """A base model's folder may be named from the plan's own."""
    if plan_file is not None and not Path(base).exists() and (plan_file.parent / base).exists():
        return str(plan_file.parent / base)
    return base


def _entries(flags: Flags) -> list[dict[str, Any]]:
    if len(flags.words) > len(flags.adapters) or len(flags.boxes) > len(flags.adapters):
        raise UserError(
            "There are more --words or --box than --adapter: the first belongs to the first adapter, the second to the second."
        )
    entries: list[dict[str, Any]] = []
    for index, text in enumerate(flags.adapters):
        path, strength = parse_adapter(text)
        entry: dict[str, Any] = {"adapter": str(path), "strength": strength}
        if index < len(flags.words) and flags.words[index] != "-":
            entry["words"] = flags.words[index]
        if index < len(flags.boxes) and flags.boxes[index] != "-":
            entry["region"] = {"box": _box(flags.boxes[index])}
        entries.append(entry)
    return entries


def _box(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4:
        raise UserError(f"--box {text!r} should be four numbers, left,top,right,bottom, such as 0,0,0.5,1.")
    return numbers


def _settings(texts: Sequence[str]) -> Mapping[str, Any]:
    import yaml

    settings = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {text!r} should be KEY=VALUE, such as method=ties.")
        try:
            settings[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {text!r}: the value cannot be read; put quotes around a text.") from error
    return settings
