"""What of an adapter cannot act in a region, in sentences."""

from __future__ import annotations

from collections import Counter

from studio.composition.scene import Scene
from studio.pipelines.adapters import patched
from studio.pipelines.families import module_axis


def left_out_notes(scene: Scene) -> tuple[str, ...]:
    """A sentence for each entry with a region and each reason why some of its changes do not act there.

    Keys and values of words are not among them: the denoising passes make those for each region.
    """
    notes = []
    for concept in scene.concepts:
        route = concept.route(denoiser=True) if concept.mask is not None else None
        if route is None:
            continue
        with patched({"unet": scene.base.unet}, [route]) as router:
            counted = Counter(left.reason for left in router.report() if module_axis(left.path.module) != "text")
        notes += [f"{concept.title}: {count} of its changes are left out: {reason}." for reason, count in counted.items()]
    return tuple(notes)
