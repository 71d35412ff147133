"""What goes into a merge and what comes out, and the dense changes of one parameter after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from studio.pipelines.adapters import Adapter, AdapterInfo, ParameterPath
from studio.pipelines.adapters.conversion import dense_change
from studio.pipelines.errors import AdapterMismatchError, UserError


@dataclass(frozen=True, eq=False)
class Weighted:
    """An adapter and how strongly it goes into the merge."""

    adapter: Adapter
    strength: float = 1.0


@dataclass(frozen=True, eq=False)
class Merged:
    """One adapter that stands for several.

    Attributes:
        relative_error: ‖ΔW' − Σ strengthₙΔWₙ‖ / ‖Σ strengthₙΔWₙ‖ (Frobenius, all parameters together): how far it is from the
            plain sum. For rules that mean to differ from the sum it is a distance, not a fault.
        notes: what a person should know, a sentence each.
    """

    adapter: Adapter
    relative_error: float = 0.0
    notes: tuple[str, ...] = ()


def all_paths(parts: Sequence[Weighted]) -> list[ParameterPath]:
    """Every parameter that one of the parts changes, in the order in which they first appear."""
    return list(dict.fromkeys(path for part in parts for path in part.adapter.patches))


def changes(
    parts: Sequence[Weighted], components: Mapping[str, nn.Module] | None
) -> Iterator[tuple[ParameterPath, list[Tensor | None]]]:
    """For each parameter strengthₙ · ΔWₙ of each part, dense, float32 on the CPU; None for a part that leaves it alone.

    One parameter is in memory at a time.

    Args:
        components: the base model's modules; needed for a DoRA and where a file does not tell a layer's shape.
    """
    for path in all_paths(parts):
        found: list[Tensor | None] = []
        for part in parts:
            patch = part.adapter.patches.get(path)
            if patch is None:
                found.append(None)
                continue
            delta = dense_change(patch, path, components, part.adapter.info.name)
            found.append(part.strength * delta.float())
        yield path, _in_one_shape(found, path, parts)


def merged_info(parts: Sequence[Weighted], how: str) -> AdapterInfo:
    """What is known of the merge of `parts`: the family, all trigger words, and which adapters at which strengths."""
    if not parts:
        raise UserError("There is nothing to merge: give at least one adapter.")
    infos = [part.adapter.info for part in parts]
    families = {info.family for info in infos if info.family is not None}
    if len(families) > 1:
        raise AdapterMismatchError(f"Adapters of different families cannot be merged: {', '.join(sorted(families))}.")
    base_hashes = {info.base_hash for info in infos}
    same_base = infos[0] if len(base_hashes) == 1 else None
    triggers = list(dict.fromkeys(info.trigger for info in infos if info.trigger))
    listed = ", ".join(f"{info.name} at {part.strength:g}" for info, part in zip(infos, parts, strict=True))
    return AdapterInfo(
        name=" + ".join(info.name for info in infos)[:120],
        family=families.pop() if families else None,
        base_name=same_base.base_name if same_base else None,
        base_hash=same_base.base_hash if same_base else None,
        trigger=", ".join(triggers) or None,
        prediction_type=same_base.prediction_type if same_base else None,
        description=f"Merged ({how}): {listed}.",
        tags=("merged",),
    )


def _in_one_shape(found: list[Tensor | None], path: ParameterPath, parts: Sequence[Weighted]) -> list[Tensor | None]:
    """A 1×1 convolution and a linear layer may stand for each other in files."""
    shapes = [delta.shape for delta in found if delta is not None]
    for index, delta in enumerate(found):
        if delta is None or delta.shape == shapes[0]:
            continue
        if delta.numel() != shapes[0].numel() or delta.shape[0] != shapes[0][0]:
            first = next(part.adapter.info.name for part, other in zip(parts, found, strict=True) if other is not None)
            raise AdapterMismatchError(
                f"{path} is {list(shapes[0])} in {first!r} and {list(delta.shape)} in {parts[index].adapter.info.name!r}: they "
                "were made for different base models."
            )
        found[index] = delta.reshape(shapes[0])
    return found
