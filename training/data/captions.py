"""Captions of a photo: from a text file beside it or from templates, with the concept's words in them unless told otherwise."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from studio.pipelines.errors import DatasetError
from studio.training.config import ConceptConfig
from studio.training.config.words import fill_template


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The captions one photo may be trained with.

    Attributes:
        full: alternatives, one of which is drawn at random. bare: the concept's words and nothing else.
        from_file: whether `full` was read from a file.
    """

    full: tuple[str, ...]
    bare: str
    from_file: bool = False

    def choose(self, kind: float, which: float, *, bare_share: float, dropout: float) -> str:
        """The caption for two uniform numbers in [0, 1): `kind` decides empty, bare or full, `which` the alternative."""
        if kind < dropout:
            return ""
        if kind < dropout + (1.0 - dropout) * bare_share:
            return self.bare
        return self.full[int(which * len(self.full))]

    def all(self) -> tuple[str, ...]:
        """Every caption that `choose` can give."""
        return tuple(dict.fromkeys(("", self.bare, *self.full)))


def captions_for(photo_path: Path, concept: ConceptConfig) -> Captions:
    """The captions of the photo at `photo_path`.

    A file of the same name that ends in `.txt` has priority over the templates; each of its lines is an alternative. It
    may use {token} and {class_noun}; where the token is missing, it is put before the class noun, or in front, unless
    captions are to stay as they are written.

    Raises:
        DatasetError: the text file is not UTF-8 text.
    """
    bare = fill_template(concept.bare_template, concept.token, concept.class_noun)
    lines = _lines(photo_path.with_suffix(".txt"))
    if lines:
        place = fill_template if concept.caption_words == "as-written" else with_trigger
        full = tuple(place(line, concept.token, concept.class_noun) for line in lines)
        return Captions(full=full, bare=bare, from_file=True)
    full = tuple(fill_template(template, concept.token, concept.class_noun) for template in concept.caption_templates)
    return Captions(full=full, bare=bare)


def with_trigger(caption: str, token: str, class_noun: str) -> str:
    """`caption` with placeholders filled, and with the token in it."""
    caption = fill_template(caption, token, class_noun)
    if re.search(rf"(?<!\w){re.escape(token)}(?!\w)", caption, re.IGNORECASE):
        return caption
    noun = re.search(rf"(?<!\w){re.escape(class_noun)}(?!\w)", caption, re.IGNORECASE)
    if noun is not None:
        return f"{caption[: noun.start()]}{token} {caption[noun.start() :]}"
    return f"{token} {class_noun}, {caption}"


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: is not a UTF-8 text file; save the caption as UTF-8, or delete it") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check its permissions, or delete it") from error
    if "\x00" in text or len(text) > 20_000:
        raise DatasetError(f"{path}: is no caption; write one sentence on the photo, or delete it")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]
