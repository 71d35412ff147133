"""Who of a plan stands for the content and who for the style, for strategies that know these two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from studio.composition.scene import Concept


@dataclass(frozen=True, eq=False)
class Sides:
    """The concepts by side. `notes`: a sentence where the side was guessed."""

    content: tuple[Concept, ...]
    style: tuple[Concept, ...]
    notes: tuple[str, ...] = ()

    def is_style(self, concept: Concept) -> bool:
        """Which of the two it is."""
        return any(concept is other for other in self.style)


def content_and_style(concepts: Sequence[Concept], strategy: str) -> Sides:
    """An entry is for the style if it is the style half of a B-LoRA, or has the role style; all others are for the content.

    Where several entries are there and none is for the style, the last one without a half is taken for it, and a note says so.
    """
    style = [concept for concept in concepts if _says_style(concept)]
    notes: tuple[str, ...] = ()
    open_ones = [concept for concept in concepts if concept.entry.half is None]
    if not style and len(concepts) > 1 and open_ones:
        style = open_ones[-1:]
        said = f"{strategy} joins a content and a style, and no entry has the role style: {style[0].title} is taken for it."
        notes = (f"{said} Say role: style in the plan for the one that is meant.",)
    return Sides(tuple(concept for concept in concepts if all(concept is not other for other in style)), tuple(style), notes)


def _says_style(concept: Concept) -> bool:
    return concept.entry.half == "style" if concept.entry.half is not None else concept.role == "style"
