"""What tells two kinds of files apart that have the same keys: LoRA and DiffuseKronA in diffusers' old attention processors."""

from __future__ import annotations

from studio.pipelines.adapters.serialization.dialect import Shapes

_DOWN, _UP = "_lora.down.weight", "_lora.up.weight"


def has_kronecker_shapes(shapes: Shapes) -> bool:
    """Whether a layer's `down` has another first side than its `up` has a second, as no LoRA's has.

    (A Kronecker file whose layers all happen to have equal ones cannot be told apart. It would need an input of a² channels.)
    """
    downs = {key: shape for key, shape in shapes.items() if key.endswith(_DOWN)}
    pairs = ((shape, shapes.get(key.removesuffix(_DOWN) + _UP)) for key, shape in downs.items())
    return any(up is not None and len(down) == len(up) == 2 and down[0] != up[1] for down, up in pairs)
