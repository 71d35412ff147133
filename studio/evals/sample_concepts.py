"""The sample concepts in `assets/concepts`: five photos of an individual each, with the exact description of every photo.

`python -m studio.evals.sample_concepts` writes them again.
"""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path

from PIL import Image

from studio.assets.world import Individual, Scene, random_individual, render
from studio.evals.concept import PHOTO_PIXELS, Concept
from studio.evals.concept_prompts import photo_scenes
from studio.pipelines.errors import UserError
from studio.training.data.images import open_image

SAMPLES = (("robot", 18), ("cat", 17), ("mug", 15))
"""Class and seed of each sample individual."""


def sample_concepts() -> tuple[str, ...]:
    """Names of the concepts that come with the studio."""
    folder = files("studio.assets") / "concepts"
    return tuple(sorted(entry.name for entry in folder.iterdir() if (entry / "concept.json").is_file()))


def load_sample(name: str) -> tuple[Concept, Path]:
    """A sample concept and the folder of its photos. Raises UserError for a name that isn't there."""
    if name not in sample_concepts():
        raise UserError(f"There is no sample concept {name!r}; there are: {', '.join(sample_concepts())}.")
    with as_file(files("studio.assets") / "concepts" / name) as folder:
        scenes = json.loads((folder / "concept.json").read_text(encoding="utf-8"))["photos"]
        thing = Scene.from_dict(scenes[0]).objects[0]
        if thing.look is None:
            raise ValueError(f"{folder}/concept.json describes no individual")
        photos = tuple(open_image(path) for path in sorted(folder.glob("*.png")))
        return Concept(name, Individual(thing.class_name, thing.look, thing.extras), photos), Path(folder)


def write_sample(folder: Path, class_name: str, seed: int) -> None:
    """Render the five photos of an individual into `folder`, with `concept.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = photo_scenes(random_individual(class_name, seed), seed)
    for i, scene in enumerate(scenes):
        Image.fromarray(render(scene, PHOTO_PIXELS)).save(folder / f"{i + 1:02d}.png", optimize=True)
    description = {"class_noun": class_name, "photos": [scene.to_dict() for scene in scenes]}
    (folder / "concept.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with as_file(files("studio.assets") / "concepts") as root:
        for class_name, seed in SAMPLES:
            write_sample(Path(root) / class_name, class_name, seed)
