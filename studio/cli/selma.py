"""`studio selma`: a model teaches itself skills."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.cli import drawing_options as options
from studio.cli.drawing import say
from studio.cli.settings import assignments
from studio.pipelines.errors import MissingFileError, UserError

if TYPE_CHECKING:
    from studio.workflows.selma_skills import SkillSet


def selma(
    skills: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of skills (see docs/selma.md). By default those of the embedded model's world.", show_default=False
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(metavar="SKILL=FILE", help="A skill from a text file, a prompt a line. Repeat for several."),
    ] = None,
    language_model: Annotated[
        Path | None,
        typer.Option(help="Folder of a transformers language model, which writes more prompts like the ones there are."),
    ] = None,
    num_prompts: Annotated[int, typer.Option("--num-prompts", "-n", min=2, help="Prompts of each skill.")] = 100,
    most_alike: Annotated[float, typer.Option(min=0.0, max=1.0, help="ROUGE-L that two prompts of a skill may have.")] = 0.8,
    base: options.Base = None,
    pictures_by: Annotated[
        str | None,
        typer.Option(help="Another base model, a weaker one too, that draws the training pictures.", show_default=False),
    ] = None,
    keep_from: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Learn only from pictures that show at least this share of what their prompts say, as the scorer sees it. By "
            "default from all, as in the paper.",
            show_default=False,
        ),
    ] = None,
    attempts: Annotated[int, typer.Option(min=1, help="With --keep-from: pictures for each prompt at the most.")] = 2,
    scorer: Annotated[str, typer.Option(help="With --keep-from: guide, or a folder with a CLIP model.")] = "guide",
    steps: options.Steps = 30,
    guidance: options.Guidance = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Rank of the merged file; by default the exact sum.", show_default=False)
    ] = None,
    mixture: Annotated[
        bool, typer.Option("--mixture", help="Also train one adapter on all skills' pictures, to compare with.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="A setting of the trainings, as schedule.steps=400."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts and pictures.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; what is there already is not made again.")] = Path(
        "outputs/selma"
    ),
) -> None:
    """Teach a base model skills with pictures of its own, one adapter each, and merge them into one file (SELMA).

    Prompts for each skill are filled from templates, read from files or written by a language model on this machine; none is
    much like another. The base model draws them, an adapter learns from each skill's pictures, and the mean of the adapters is
    one file that follows prompts better. Nothing is judged by eye: look at 'studio eval selma' for what it brings.

    Examples:

      studio selma --keep-from 1 --attempts 3

      studio selma --base my-model --prompts counting=counting.txt --prompts texture=texture.txt --language-model models/llm
    """
    chosen = _skills(skills, prompts or [])
    train = assignments(settings or [])
    from studio.pipelines.base_model import load_base
    from studio.pipelines.scoring import load_scorer
    from studio.training.progress import progress_for_terminal
    from studio.workflows.selma import SelmaSettings, run_selma
    from studio.workflows.selma_language import LanguageModel
    from studio.workflows.selma_pictures import Drawing

    writer = None if language_model is None else LanguageModel.load(language_model)
    judge = None if keep_from is None else load_scorer(scorer)
    model = load_base(base)
    painter = None if pictures_by is None else load_base(pictures_by)
    drawing = Drawing(
        seed=seed,
        steps=steps,
        guidance_scale=guidance,
        attempts=1 if keep_from is None else attempts,
        keep_from=keep_from,
    )
    made = run_selma(
        model,
        chosen,
        output,
        SelmaSettings(
            num_prompts=num_prompts,
            most_alike=most_alike,
            seed=seed,
            drawing=drawing,
            train=train,
            mixture=mixture,
            rank=rank,
        ),
        picture_base=painter,
        scorer=judge,
        language_model=writer,
        progress=progress_for_terminal(),
    )
    for name, path in made.experts.items():
        typer.echo(f"expert {name}: {path}")
    if made.mixture is not None:
        typer.echo(f"mixture: {made.mixture}")
    typer.echo(f"merged: {made.merged}")
    typer.echo(f"plan:   {made.plan}")
    say(f'next: studio generate --adapter {made.merged} --prompt "…"')


def _skills(path: Path | None, files: Sequence[str]) -> SkillSet:
    from studio.workflows.selma_skills import builtin_skills, read_prompts, read_skills, skills_from_values

    if not files:
        return builtin_skills() if path is None else read_skills(path)
    if path is not None:
        raise UserError("Give --skills or --prompts; a skills file can name prompt files itself, as prompts_file.")
    found = []
    for text in files:
        name, equals, file = text.partition("=")
        if not equals or not name or not file:
            raise UserError(f"--prompts {text!r} should be SKILL=FILE, such as counting=counting.txt.")
        if not Path(file).is_file():
            raise MissingFileError(f"There is no file {file}.")
        own = read_prompts(Path(file))
        found.append({"name": name, "prompts": own, "examples": own})
    return skills_from_values({"skills": found}, "--prompts")
