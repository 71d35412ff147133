"""Which pictures share a forward: decided from the whole expansion, so that what is done already changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from studio.batch.resolving import AnyTask
from studio.batch.tasks import GroupTask, PictureTask, PlanTask, TrainTask

SharedLayers = Callable[[PictureTask], str | None]
"""What a picture's adapters change, as a word that is equal for equal layers; None if they act on whole batches only."""


def plan_groups(tasks: Sequence[AnyTask], batch_size: int, layers_of: SharedLayers) -> list[GroupTask]:
    """All tasks in groups of at most `batch_size`, in the order that loads the fewest models.

    The order is base model, adapters, size, prompt, seed. Pictures with the same adapters fill groups of their own first;
    what is left of several joins, if it changes the same layers: a row's last bits must not depend on whom it sits beside.
    A short group is filled up to the next power of two, so that there are few shapes.
    """
    groups: list[tuple[list[AnyTask], tuple[int, ...]]] = [([task], (0,)) for task in tasks if isinstance(task, TrainTask)]
    bases = dict.fromkeys(task.base.content_hash for task in tasks)
    for base in bases:
        pictures = [task for task in tasks if isinstance(task, PictureTask) and task.base.content_hash == base]
        groups += _of_pictures(pictures, batch_size, layers_of)
        groups += _of_plans([task for task in tasks if isinstance(task, PlanTask) and task.base.content_hash == base], batch_size)
    return [_group(index, members, pattern, batch_size) for index, (members, pattern) in enumerate(groups)]


def _of_pictures(
    tasks: Sequence[PictureTask], batch_size: int, layers_of: SharedLayers
) -> list[tuple[list[AnyTask], tuple[int, ...]]]:
    by_adapters = _by(tasks, lambda task: (_adapters(task), _shape(task)))
    groups: list[tuple[list[AnyTask], tuple[int, ...]]] = []
    left: dict[Hashable, list[PictureTask]] = {}
    for (_, shape), members in by_adapters.items():
        members = sorted(members, key=lambda task: (task.prompt, task.negative_prompt, task.seed, task.index))
        full = len(members) // batch_size * batch_size
        groups += [(list(members[start : start + batch_size]), (0,) * batch_size) for start in range(0, full, batch_size)]
        rest = members[full:]
        if rest:
            layers = layers_of(rest[0])
            alone = ("alone", _adapters(rest[0])) if layers is None else layers
            left.setdefault((shape, alone), []).extend(rest)
    for members in left.values():
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            order = list(dict.fromkeys(_adapters(task) for task in part))
            groups.append((list(part), tuple(order.index(_adapters(task)) for task in part)))
    position = {_adapters(task): number for number, task in enumerate(reversed(tasks))}
    return sorted(groups, key=lambda group: -position[_adapters(group[0][0])])


def _of_plans(tasks: Sequence[PlanTask], batch_size: int) -> list[tuple[list[AnyTask], tuple[int, ...]]]:
    groups: list[tuple[list[AnyTask], tuple[int, ...]]] = []
    for members in _by(tasks, plan_but_seed).values():
        for start in range(0, len(members), batch_size):
            part = members[start : start + batch_size]
            groups.append((list(part), (0,) * len(part)))
    return groups


def plan_but_seed(task: PlanTask) -> str:
    """What pictures of one plan have in common."""
    identity = task.identity()
    plan = {key: value for key, value in identity["plan"].items() if key != "seed"}
    return json.dumps(identity | {"plan": plan}, sort_keys=True, default=str)


def _group(index: int, members: list[AnyTask], pattern: tuple[int, ...], batch_size: int) -> GroupTask:
    num_rows = 1
    while num_rows < len(members):
        num_rows *= 2
    num_rows = max(len(members), min(num_rows, batch_size))
    return GroupTask(
        index=index,
        tasks=tuple(members),
        num_rows=num_rows,
        pattern=(*pattern, *[pattern[-1]] * (num_rows - len(pattern))),
    )


def _adapters(task: AnyTask) -> tuple[Any, ...]:
    return tuple(each.key() for each in task.adapters) if isinstance(task, PictureTask) else ()


def _shape(task: PictureTask) -> tuple[Any, ...]:
    return (task.width, task.height, task.steps, task.scheduler, task.guidance_scale, task.dtype)


def _by(tasks: Sequence[Any], key: Callable[[Any], Hashable]) -> dict[Any, list[Any]]:
    found: dict[Hashable, list[Any]] = {}
    for task in tasks:
        found.setdefault(key(task), []).append(task)
    return found


def sub_groups(group: GroupTask) -> list[GroupTask]:
    """A group taken apart into one for each set of adapters; the group alone if it has but one."""
    numbers = list(dict.fromkeys(group.pattern[: len(group.tasks)]))
    if len(numbers) < 2:
        return [group]
    parts = [[task for task, own in zip(group.tasks, group.pattern, strict=False) if own == number] for number in numbers]
    apart = [_group(group.index, list(part), (0,) * len(part), group.num_rows) for part in parts]
    return [each.model_copy(update={"packs": group.packs}) for each in apart]
