"""Scenes as data: what stands where, on what, drawn how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from studio.assets.world.vocabulary import BACKGROUNDS, CLASSES, COLOURS, PATTERNS, RGB, STYLES

Box = tuple[float, float, float, float]


def _member(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}; known: {', '.join(known)}")


@dataclass(frozen=True)
class Look:
    """A two-colour surface outside the named palette."""

    body: RGB
    second: RGB
    pattern: str = "plain"

    def __post_init__(self) -> None:
        _member(self.pattern, PATTERNS, "pattern")


@dataclass(frozen=True)
class Extra:
    """Something an object wears; see EXTRA_ANCHORS for the kinds."""

    kind: str
    colour: RGB


@dataclass(frozen=True)
class Individual:
    """One particular object: it looks the same in every scene."""

    class_name: str
    look: Look
    extras: tuple[Extra, ...] = ()

    def __post_init__(self) -> None:
        _member(self.class_name, CLASSES, "class")


@dataclass(frozen=True)
class SceneObject:
    """An object in a scene; the box is in fractions of the picture."""

    class_name: str
    colour: str | None
    pattern: str
    box: Box
    look: Look | None = None
    extras: tuple[Extra, ...] = ()
    flip: bool = False

    def __post_init__(self) -> None:
        _member(self.class_name, CLASSES, "class")
        _member(self.pattern, PATTERNS, "pattern")
        if self.colour is not None:
            _member(self.colour, COLOURS, "colour")
        elif self.look is None:
            raise ValueError("an object needs a colour name or a look")


@dataclass(frozen=True)
class Scene:
    """A picture's exact description; seed varies small background details."""

    background: str
    style: str
    objects: tuple[SceneObject, ...] = field(default=())
    seed: int = 0

    def __post_init__(self) -> None:
        _member(self.background, BACKGROUNDS, "background")
        _member(self.style, STYLES, "style")

    @property
    def relation(self) -> str | None:
        """How the first object stands to the second, or None."""
        if len(self.objects) < 2:
            return None
        return relation_of(self.objects[0].box, self.objects[1].box)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able description."""
        return {
            "background": self.background, "style": self.style, "seed": self.seed,
            "relation": self.relation,
            "objects": [
                {
                    "class_name": o.class_name, "colour": o.colour, "pattern": o.pattern,
                    "box": list(o.box), "flip": o.flip,
                    "look": None if o.look is None else {
                        "body": list(o.look.body), "second": list(o.look.second),
                        "pattern": o.look.pattern,
                    },
                    "extras": [{"kind": e.kind, "colour": list(e.colour)} for e in o.extras],
                }
                for o in self.objects
            ],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scene:
        """The scene that to_dict described."""
        return cls(data["background"], data["style"],
                   tuple(_object(o) for o in data["objects"]), int(data["seed"]))


def _rgb(values: list[int]) -> RGB:
    r, g, b = (int(v) for v in values)
    return r, g, b


def _object(data: dict[str, Any]) -> SceneObject:
    look = data["look"]
    x0, y0, x1, y1 = (float(v) for v in data["box"])
    return SceneObject(
        data["class_name"], data["colour"], data["pattern"], (x0, y0, x1, y1),
        None if look is None else Look(_rgb(look["body"]), _rgb(look["second"]), look["pattern"]),
        tuple(Extra(e["kind"], _rgb(e["colour"])) for e in data["extras"]),
        bool(data["flip"]),
    )


def relation_of(a: Box, b: Box) -> str:
    """How box a stands to box b: by the larger distance of their centres."""
    dx = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2
    dy = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"
