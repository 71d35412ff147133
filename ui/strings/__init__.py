"""Every word that the page says, in one catalogue with two languages.

Labels (`label`) and pieces of HTML (`translated`) are put into a language by the browser; sentences with values on the
server (`Words`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from importlib import resources

import gradio as gr
import yaml

LANGUAGES = ("en", "de")


@cache
def catalogue() -> dict[str, tuple[str, ...]]:
    """Every key with its texts, in the order of `LANGUAGES`."""
    found: dict[str, tuple[str, ...]] = {}
    folder = resources.files("studio.ui.strings")
    for file in sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml")):
        for key, texts in yaml.safe_load(folder.joinpath(file).read_text(encoding="utf-8")).items():
            assert key not in found and len(texts) == len(LANGUAGES) and all(isinstance(text, str) for text in texts), key
            found[key] = tuple(texts)
    return found


@cache
def translations() -> gr.I18n:
    """The catalogue as gradio takes it, and every piece of HTML that was `translated` so far."""
    return gr.I18n(**{language: {key: texts[n] for key, texts in catalogue().items()} for n, language in enumerate(LANGUAGES)})


def label(key: str) -> str:
    """The text of `key` for a component; the browser puts it into its own language."""
    assert key in catalogue(), key
    return str(translations()(key))


def translated(make: Callable[[Words], str]) -> str:
    """HTML that does not change, made in every language; the browser shows the one of its own."""
    texts = [make(Words(language)) for language in LANGUAGES]
    key = f"html_{hashlib.sha256(repr(texts).encode()).hexdigest()[:24]}"
    for language, text in zip(LANGUAGES, texts, strict=True):
        translations().translations[language][key] = text
    return str(translations()(key))


class Words:
    """Texts in one language."""

    def __init__(self, language: str = "en") -> None:
        self.language = language
        self._index = LANGUAGES.index(language)

    def __call__(self, key: str, **values: object) -> str:
        """The text of `key` with `values` put in."""
        return catalogue()[key][self._index].format(**values)

    def known(self, key: str, otherwise: str) -> str:
        """The text of `key`, or `otherwise` where there is none."""
        return self(key) if key in catalogue() else otherwise


def words_for(request: gr.Request | None) -> Words:
    """Texts in the language that the browser asks for first, of those that there are."""
    header = "" if request is None else str(request.headers.get("accept-language", ""))
    for wish in header.split(","):
        language = wish.split(";")[0].strip().split("-")[0].lower()
        if language in LANGUAGES:
            return Words(language)
    return Words()
