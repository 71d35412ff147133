"""`studio compose`: several adapters in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.cli import composing, drawing_options
from studio.cli.composing import Flags, note, open_plan_here, plan_of
from studio.cli.drawing import Precision, progress, say, use_attention
from studio.pipelines.errors import UserError

if TYPE_CHECKING:
    from studio.workflows.compose import ComposedPicture, OpenedPlan


def compose(
    plan: composing.PlanFile = None,
    prompt: composing.Prompt = None,
    adapter: composing.Adapter = None,
    words: composing.Words = None,
    box: composing.Box = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            help="How the adapters come together: merge (the default), selma, switch, weighted-switch, composite, cmlora, "
            "loratorio, k-lora, b-lora, decor, ziplora, clora, regional or lora-composer.",
            show_default=False,
        ),
    ] = None,
    set_: composing.Setting = None,
    strength_unit: composing.StrengthUnit = None,
    scorer: Annotated[
        str, typer.Option(help="Who measures adapters for calibrated strengths: guide, or a folder with a CLIP model.")
    ] = "guide",
    negative: composing.Negative = None,
    num_images: composing.NumImages = None,
    seed: composing.Seed = None,
    steps: composing.Steps = None,
    guidance: drawing_options.Guidance = None,
    size: drawing_options.Size = None,
    scheduler: drawing_options.Scheduler = None,
    base: composing.Base = None,
    adapters_dir: composing.AdaptersDir = None,
    conflicts: Annotated[
        bool,
        typer.Option("--conflicts", help="Draw nothing; measure how much the adapters get in each other's way, and say so."),
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Draw nothing; write all adapters as one to this file, by the strategy merge.", show_default=False),
    ] = None,
    save_plan: Annotated[
        Path | None,
        typer.Option(
            help="Draw nothing; write the plan that these flags make to this file (.yaml or .json).", show_default=False
        ),
    ] = None,
    propose_layout: Annotated[
        Path | None,
        typer.Option(
            help="Draw nothing; write the plan with a box for each entry that has words and no region to this file (.yaml or "
            ".json), and a picture of the boxes beside it. Boxes come from what the base model's attention reads the words in.",
            show_default=False,
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(
            help="Folder for sheets with the pictures so far, where each entry acts and where its words are read.",
            show_default=False,
        ),
    ] = None,
    preview_every: Annotated[int, typer.Option(min=1, help="Steps from one sheet to the next.")] = 5,
    output: drawing_options.Output = Path("outputs/compositions"),
    batch_size: drawing_options.BatchSize = 4,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            help="Memory that may be used, such as 4GB, or auto for what is free. What is needed is counted beforehand; where it "
            "is too much, the plan is drawn more sparingly, and what is done is said.",
            show_default=False,
        ),
    ] = None,
    device: drawing_options.Device = "auto",
    dtype: drawing_options.Dtype = Precision.AUTO,
    attention: drawing_options.Attention = None,
    metadata: drawing_options.Metadata = True,
) -> None:
    """Draw one picture with several adapters, each for its own words or place.

    What to do is a plan: a YAML or JSON file, or flags, or both. Every picture has its plan in it, with the hashes of all
    files, so that 'studio compose PICTURE.png' draws it again. 'studio compare' shows all strategies side by side.

    Examples:

      studio compose -p "a ohwx cat and a zwx robot" -a cat.safetensors -a robot.safetensors:0.8 --strategy composite

      studio compose plan.yaml --seed 7 -n 4

      studio compose plan.yaml --set method=regression --export both.safetensors

      studio compose plan.yaml --propose-layout boxes.yaml, and after a look at boxes.png: studio compose boxes.yaml
    """
    flags = Flags(
        prompt=prompt,
        adapters=adapter or [],
        words=words or [],
        boxes=box or [],
        negative=negative,
        num_images=num_images,
        seed=seed,
        steps=steps,
        guidance=guidance,
        size=size,
        scheduler=scheduler,
        base=base,
        strategy=strategy,
        settings=set_ or [],
        strength_unit=strength_unit,
    )
    wanted = plan_of(plan, flags)
    from studio.composition.drawing import check_strategy

    check_strategy(wanted.strategy.name, dict(wanted.strategy.settings))
    if save_plan is not None:
        from studio.composition.plan_files import write_plan

        write_plan(wanted, save_plan)
        typer.echo(save_plan)
        return
    use_attention(attention)
    opened = open_plan_here(wanted, plan, adapters_dir or [], device, dtype, scorer)
    if conflicts:
        from studio.composition.conflicts import conflict_report

        note(opened.scene.notes)
        typer.echo("\n".join(conflict_report(opened.scene).lines()))
    elif export is not None:
        _export(opened, export)
    elif propose_layout is not None:
        _propose(opened, propose_layout)
    else:
        _draw(opened, output, batch_size, metadata, memory_limit, preview, preview_every)


def _export(opened: OpenedPlan, path: Path) -> None:
    """Write the merge of the plan's adapters to a file of the first dialect that can hold it."""
    from studio.composition.drawing import merged_of
    from studio.pipelines.adapters import save_adapter
    from studio.pipelines.adapters.files import dialects_for

    if any(path.exists() and path.samefile(file) for file in opened.files):
        raise UserError(f"{path} is one of the adapters that are merged; choose another name.")
    merged = merged_of(opened.scene)
    note(merged.notes)
    save_adapter(merged.adapter, path, dialects_for(merged.adapter)[0], family=opened.scene.base.family)
    say(f"distance from the plain sum: {merged.relative_error:.3g} of its size")
    typer.echo(path)


def _propose(opened: OpenedPlan, path: Path) -> None:
    """Write the plan with boxes, and a picture of them."""
    from studio.composition.layout import propose_layout
    from studio.composition.plan_files import write_plan
    from studio.composition.strategies import strategy_named
    from studio.pipelines.pictures import save_picture
    from studio.workflows.composition_pictures import layout_picture

    picture = path.with_suffix(".png")
    if path == picture:
        raise UserError(f"{path} would be a picture; name a plan, such as {path.with_suffix('.yaml')}.")
    note(opened.scene.notes)
    with progress() as on_step:
        layout = propose_layout(opened.scene, on_step=on_step)
    note(layout.notes)
    plan = layout.plan
    if not strategy_named(plan.strategy.name).uses_regions:
        note([f"the strategy {plan.strategy.name} knows no regions; the new plan has lora-composer."])
        plan = plan.model_copy(update={"strategy": type(plan.strategy)(name="lora-composer")})
    write_plan(plan, path)
    save_picture(picture, layout_picture(opened.scene.base, layout), None)
    typer.echo(path)
    typer.echo(picture)


def _draw(
    opened: OpenedPlan,
    output: Path,
    batch_size: int,
    metadata: bool,
    memory_limit: str | None,
    preview: Path | None,
    preview_every: int,
) -> None:
    from studio.composition.drawing import compile_scene
    from studio.composition.thrift import Thrift
    from studio.pipelines.pictures import next_index
    from studio.workflows.compose import compose as draw_plan
    from studio.workflows.composition_pictures import preview_writer

    compiled = compile_scene(opened.scene)
    note(compiled.notes)
    thrift = Thrift(batch_size=batch_size)
    if memory_limit is not None:
        from studio.composition.memory import fit_memory, parse_memory

        fitting = fit_memory(compiled, thrift, parse_memory(memory_limit, opened.scene.base.device))
        note(fitting.notes)
        thrift = fitting.thrift
    first = next_index(output)
    watch = None if preview is None else preview_writer(opened.scene.base, preview, preview_every)
    pictures: list[ComposedPicture] = []
    written: list[Path] = []
    try:
        with progress() as on_step:
            for batch in draw_plan(opened, compiled=compiled, thrift=thrift, on_step=on_step, on_preview=watch):
                written += save_pictures(batch, output, first + len(pictures), metadata=metadata)
                pictures += batch
        written += _sheet(pictures, output / f"{first:05d}-contact-sheet.png")
    finally:  # also what was done before Ctrl-C
        for path in written:
            typer.echo(path)


def save_pictures(pictures: Sequence[ComposedPicture], folder: Path, first: int, *, metadata: bool = True) -> list[Path]:
    """Write pictures under numbers from `first` on, with their records."""
    from studio.pipelines.pictures import picture_name, save_picture

    written = []
    for number, picture in enumerate(pictures, start=first):
        record = picture.record
        path = folder / picture_name(number, record.seed, record.prompt, record.content_hash())
        save_picture(path, picture.image, record if metadata else None)
        written.append(path)
    return written


def _sheet(pictures: Sequence[ComposedPicture], path: Path) -> list[Path]:
    from studio.pipelines.pictures import contact_sheet, save_picture

    if len(pictures) < 2:
        return []
    captions = [f"{picture.record.seed}: {picture.record.prompt}" for picture in pictures]
    save_picture(path, contact_sheet([picture.image for picture in pictures], captions), None)
    return [path]
