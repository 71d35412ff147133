"""One name or path to one scorer."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from studio.pipelines.errors import MissingFileError
from studio.pipelines.scoring.clip_dino import ClipDinoScorer
from studio.pipelines.scoring.embedded import EmbeddedScorer
from studio.pipelines.scoring.referee_files import INDEX, REFEREES, load_referee
from studio.pipelines.scoring.scorer import Scorer


def load_scorer(name_or_path: str | Path) -> Scorer:
    """Load a scorer.

    Args:
        name_or_path: `guide` or `judge` (embedded); a referee's `.safetensors` beside its `referees.json`; a folder with a CLIP
            model in it, or with the sub-folders `clip` and, if wanted, `dinov2`.

    Raises:
        MissingFileError: there is no such scorer.
        RefereeFileError: a referee's weights are not the frozen ones.
    """
    if name_or_path in REFEREES:
        return embedded_referee(str(name_or_path))
    path = Path(name_or_path)
    if path.suffix == ".safetensors" and (path.parent / INDEX).is_file():
        return load_referee(path.stem, path.parent)
    if (path / "clip" / "config.json").is_file():
        dinov2 = path / "dinov2"
        return ClipDinoScorer(path / "clip", dinov2 if dinov2.is_dir() else None)
    if (path / "config.json").is_file():
        return ClipDinoScorer(path)
    raise MissingFileError(
        f"There is no scorer {str(name_or_path)!r}: name guide or judge, a referee's .safetensors file, "
        "or a folder with a CLIP model (or with clip/ and dinov2/ in it)."
    )


@lru_cache(maxsize=2)
def embedded_referee(name: str) -> EmbeddedScorer:
    """The embedded guide or judge, loaded and verified once a process."""
    return load_referee(name)
