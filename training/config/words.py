"""The words of a concept: the class noun, the token and the templates they are put into."""

from __future__ import annotations

import re

PLACEHOLDERS = ("token", "class_noun")


def check_class_noun(noun: str) -> str:
    """The class noun, checked; raises ValueError with the rest of a sentence."""
    if not noun:
        raise ValueError("is empty; give the everyday word for what the photos show, such as dog or backpack")
    if len(noun) > 60 or not re.fullmatch(r"[^{}<>\"\\\n\r\t]+", noun):
        raise ValueError("must be one or two plain words, such as dog or stuffed animal")
    return noun


def check_token(token: str) -> str:
    """The token, checked; raises ValueError with the rest of a sentence."""
    if not token:
        raise ValueError('is empty; leave it out for "ohwx", or give a rare made-up word')
    if len(token) > 40 or not re.fullmatch(r"[^\s{}\"\\,]+", token):
        raise ValueError("must be one word without spaces, commas, quotes or braces, such as ohwx")
    return token


def check_prompt(prompt: str) -> str:
    """A prompt that may hold placeholders, checked; raises ValueError with the rest of a sentence."""
    unknown = [name for name in re.findall(r"\{([^{}]*)\}", prompt) if name not in PLACEHOLDERS]
    if unknown:
        raise ValueError(f"has the unknown placeholder {{{unknown[0]}}}; the known ones are {{token}} and {{class_noun}}")
    return prompt


def check_template(template: str) -> str:
    """A caption template, checked; raises ValueError with the rest of a sentence."""
    check_prompt(template)
    if "{token}" not in template:
        raise ValueError('lacks {token}; write for example "a photo of a {token} {class_noun}"')
    return template


def check_output_name(name: str) -> str:
    """A name that is safe as part of a file name on every system; raises ValueError with the rest of a sentence."""
    if not re.fullmatch(r"[^\x00-\x1f<>:\"/\\|?*]{1,80}", name) or name.strip(". ") != name:
        raise ValueError('must be 1 to 80 characters without / \\ : * ? " < > | and without dots or spaces at its ends')
    return name


def fill_template(template: str, token: str, class_noun: str) -> str:
    """Put the concept's words into `template`."""
    return template.replace("{token}", token).replace("{class_noun}", class_noun)


def trigger_of(token: str, class_noun: str, bare_template: str) -> str:
    """The words that call the concept: "ohwx dog", or the token alone where captions have no class noun."""
    return fill_template("{token} {class_noun}" if "{class_noun}" in bare_template else "{token}", token, class_noun)


def with_article(noun: str) -> str:
    """`noun` after "a" or "an"."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def slug(text: str) -> str:
    """`text` as lower-case ASCII words with hyphens, for folder names; "concept" if nothing is left."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words if words else "concept"
