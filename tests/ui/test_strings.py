"""One catalogue of words: whole in both languages, and nothing is said that is not in it."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest

from studio.composition.strategies import STRATEGIES
from studio.jobs.specs import SPECS
from studio.pipelines.denoising import SCHEDULER_NAMES
from studio.service import State
from studio.ui.pages import PAGES
from studio.ui.pages.create import SCHEDULERS
from studio.ui.parts.commands import FORMATS
from studio.ui.parts.training_form import GOALS, METHODS
from studio.ui.strings import LANGUAGES, Words, catalogue, translated, translations

SOURCES = sorted(Path(__import__("studio.ui", fromlist=["ui"]).__file__).parent.rglob("*.py"))
CALLS = re.compile(r"""\b(?:label|words|card_head|step_head)\((?:\d, )?"([a-z][a-z0-9_]*)\"""")


def test_every_text_is_there_in_both_languages_with_the_same_values():
    for key, texts in catalogue().items():
        assert all(text.strip() for text in texts), key
        fields = [sorted(name for _, name, _, _ in Formatter().parse(text) if name) for text in texts]
        assert fields[0] == fields[1], key


def test_every_key_that_the_pages_ask_for_is_there():
    known = catalogue()
    asked = {key for path in SOURCES for key in CALLS.findall(path.read_text())}
    assert len(asked) > 100
    for key in asked:
        assert key in known or {f"{key}_title", f"{key}_hint"} <= set(known), key


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("when_", [strategy.name for strategy in STRATEGIES]),
        ("state_", [*State, "paused"]),
        ("kind_", SPECS),
        ("goal_", GOALS),
        ("format_", FORMATS),
        ("nav_", [page.name for page in PAGES]),
    ],
)
def test_every_choice_has_words(prefix: str, names):
    assert not [name for name in names if f"{prefix}{name}" not in catalogue()]


def test_choices_that_are_written_down_twice_agree():
    from studio.training.methods import METHODS as TRAINED

    assert SCHEDULERS == SCHEDULER_NAMES
    assert set(METHODS) <= {method.name for method in TRAINED}


def test_html_is_made_in_every_language():
    marker = translated(lambda words: f"<b>{words('nav_train')}</b>")
    tables = translations().translations
    key = next(key for key in tables["en"] if key.startswith("html_") and key in marker)
    assert {tables[language][key] for language in LANGUAGES} == {"<b>Train</b>", "<b>Trainieren</b>"}
    assert Words("de")("time_left", time="3 s") == "noch etwa 3 s"
