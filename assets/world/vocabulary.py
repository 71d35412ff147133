"""Everything that can be named in the toy world, and how captions name it."""

from __future__ import annotations

import re

RGB = tuple[int, int, int]

CLASSES: tuple[str, ...] = (
    "cat", "dog", "robot", "house", "tree", "car", "fish",
    "mug", "star", "flower", "boat", "mushroom", "bird", "rocket",
)

COLOUR_RGB: dict[str, RGB] = {
    "red": (222, 56, 54),
    "orange": (245, 138, 36),
    "yellow": (250, 208, 52),
    "green": (66, 168, 80),
    "blue": (52, 112, 220),
    "purple": (136, 76, 190),
    "pink": (246, 138, 182),
    "brown": (142, 90, 54),
    "white": (246, 245, 240),
    "black": (58, 58, 66),
}
COLOURS: tuple[str, ...] = tuple(COLOUR_RGB)

#: The second colour of a patterned object of a named colour.
SECOND_RGB: dict[str, RGB] = {
    "red": (255, 228, 218),
    "orange": (255, 240, 208),
    "yellow": (196, 122, 14),
    "green": (214, 246, 204),
    "blue": (206, 230, 255),
    "purple": (234, 214, 252),
    "pink": (196, 46, 116),
    "brown": (238, 212, 176),
    "white": (124, 138, 168),
    "black": (206, 206, 214),
}

PATTERNS: tuple[str, ...] = ("plain", "striped", "dotted", "checkered", "zigzag")
BACKGROUNDS: tuple[str, ...] = (
    "grass", "snow", "beach", "night", "sea", "room", "white", "wall", "sky", "city",
)
STYLES: tuple[str, ...] = ("flat", "pixel", "sketch", "watercolour")
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
OPPOSITE: dict[str, str] = {
    "left of": "right of", "right of": "left of", "above": "below", "below": "above",
}
RARE_TOKENS: tuple[str, ...] = (
    "sks", "ohwx", "zwx", "vwz", "qxj", "zkq", "xjv", "kvq",
    "wqz", "jxk", "qvx", "zqj", "bqx", "hjq", "xzp", "gqz",
)

#: The first phrase of each list is the plain one, used by fixed prompts.
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "grass": ("on the grass", "on green grass", "in a meadow", "in the grass"),
    "snow": ("in the snow", "on the snow", "in a snowy field"),
    "beach": ("on the beach", "at the beach", "on the sand"),
    "night": ("at night", "under the night sky", "under the stars"),
    "sea": ("in the sea", "at sea", "on the water"),
    "room": ("in a room", "on a wooden floor", "indoors"),
    "white": ("on a white background", "on white", "with a white background"),
    "wall": ("in front of a brick wall", "by a brick wall"),
    "sky": ("in the sky", "in the clouds", "in a cloudy sky"),
    "city": ("in the city", "in a city", "on a city street"),
}
STYLE_PREFIXES: dict[str, tuple[str, ...]] = {
    "flat": ("a flat drawing of", "a flat illustration of"),
    "pixel": ("pixel art of", "a pixel art picture of"),
    "sketch": ("a pencil sketch of", "a pencil drawing of", "a sketch of"),
    "watercolour": (
        "a watercolour painting of", "a watercolour of", "a watercolor painting of",
    ),
}
STYLE_SUFFIXES: dict[str, tuple[str, ...]] = {
    "flat": ("flat drawing", "flat style", "flat illustration"),
    "pixel": ("pixel art", "pixel art style"),
    "sketch": ("pencil sketch", "pencil drawing", "pencil sketch style"),
    "watercolour": ("watercolour", "watercolour painting", "watercolour style", "watercolor"),
}
NEUTRAL_PREFIXES: tuple[str, ...] = (
    "a photo of", "a picture of", "an image of", "a drawing of",
)
RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "on top of", "over"),
    "below": ("below", "under", "beneath"),
}
NEUTRAL_RELATIONS: dict[str, tuple[str, ...]] = {
    "left of": ("and", "next to", "beside"),
    "right of": ("and", "next to", "beside"),
    "above": ("and",),
    "below": ("and",),
}
PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "plain": ("plain",),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered",),
    "zigzag": ("zigzag",),
}
NUMBERS: dict[int, str] = {2: "two", 3: "three", 4: "four"}


def plural(class_name: str) -> str:
    """The plural of a class word."""
    return class_name if class_name == "fish" else class_name + "s"


def words() -> tuple[str, ...]:
    """Every lower-case word that any caption can contain, sorted."""
    phrases: list[str] = ["a an and", *CLASSES, *map(plural, CLASSES), *COLOURS]
    phrases += [*RARE_TOKENS, *NUMBERS.values(), *NEUTRAL_PREFIXES]
    tables = (
        BACKGROUND_PHRASES, STYLE_PREFIXES, STYLE_SUFFIXES,
        RELATION_PHRASES, NEUTRAL_RELATIONS, PATTERN_WORDS,
    )
    for table in tables:
        for values in table.values():
            phrases += values
    return tuple(sorted(set(re.findall(r"[a-z0-9]+", " ".join(phrases)))))
