"""Roles: the halves of one adapter, by where its patches sit (B-LoRA, Frenkel et al. 2024, arXiv 2403.14572).

A B-LoRA is trained on one picture, in two blocks of the denoiser at once. Afterwards what the picture shows sits in the one
and how it is drawn in the other, so that the halves load apart and swap between adapters. A half's strength is that of its
`Route` and multiplies ΔW once: the published code multiplies both factors by it, and so acts with its square.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeAlias

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.adapters.routing import Route
from studio.pipelines.errors import AdapterMismatchError, UserError
from studio.pipelines.families import FAMILIES
from studio.pipelines.families.flux import FLUX_CONTENT_BLOCKS, FLUX_STYLE_BLOCKS

CONTENT, STYLE = "content", "style"
ROLES: tuple[str, ...] = (CONTENT, STYLE)

RoleBlocks: TypeAlias = Mapping[str, tuple[str, ...]]
"""Role -> prefixes of module paths in the denoiser, as {"content": ("up_blocks.0.attentions.0",), …}."""

FLUX_ROLES: RoleBlocks = MappingProxyType({CONTENT: FLUX_CONTENT_BLOCKS, STYLE: FLUX_STYLE_BLOCKS})
_DENOISERS = ("unet", "transformer")


def family_roles(family_name: str | None) -> RoleBlocks:
    """The blocks that are known to hold content and style in a family of base models; empty where none are."""
    if family_name == "flux":
        return FLUX_ROLES
    family = next((each for each in FAMILIES if each.name == family_name), None)
    if family is None or family.content_block is None or family.style_block is None:
        return {}
    return {CONTENT: (family.content_block,), STYLE: (family.style_block,)}


def roles_of(adapter: Adapter, otherwise: RoleBlocks | None = None) -> RoleBlocks:
    """Where the adapter's halves sit: as its file says, else as `otherwise` says, else as its family's facts say."""
    if adapter.info.role_blocks:
        return adapter.info.role_blocks
    return otherwise if otherwise else family_roles(adapter.info.family)


def role_of(path: ParameterPath, blocks: RoleBlocks) -> str | None:
    """The role of the block that `path` lies in; None for a path outside all of them, and outside the denoiser."""
    if path.component not in _DENOISERS:
        return None
    for role, prefixes in blocks.items():
        if any(path.module == prefix or path.module.startswith(f"{prefix}.") for prefix in prefixes):
            return role
    return None


def roles_present(adapter: Adapter, blocks: RoleBlocks | None = None) -> dict[str, int]:
    """Role -> how many patches of it the adapter has; patches without a role are not counted."""
    known = roles_of(adapter, blocks)
    found = [role_of(path, known) for path in adapter.patches]
    return {role: found.count(role) for role in known if role in found}


def select_roles(adapter: Adapter, roles: Collection[str], blocks: RoleBlocks | None = None) -> Adapter:
    """The part of `adapter` that has one of `roles`; its patches are the same objects.

    Args:
        blocks: where roles sit if neither the file nor its family says so.

    Raises:
        UserError: it is not known where the adapter's roles sit.
        AdapterMismatchError: the adapter has no patch of one of the roles.
    """
    known = roles_of(adapter, blocks)
    if not known:
        raise UserError(
            f"It is not known which blocks of the adapter {adapter.info.name!r} hold content and which style: its file does "
            "not say so and its family has no such split. Name them, or find them with `studio probe-blocks`."
        )
    present = {role_of(path, known) for path in adapter.patches}
    for role in roles:
        if role not in present:
            where = ", ".join(known.get(role, ())) if role in known else "no block"
            raise AdapterMismatchError(
                f"The adapter {adapter.info.name!r} has no {role} half: it changes nothing in {where}. "
                f"It has {' and '.join(sorted(filter(None, present))) if any(present) else 'no roles at all'}."
            )
    kept = {path: patch for path, patch in adapter.patches.items() if role_of(path, known) in roles}
    info = replace(
        adapter.info,
        name=f"{adapter.info.name} ({' and '.join(role for role in known if role in roles)})",
        roles=tuple(role for role in known if role in roles),
        role_blocks={role: tuple(prefixes) for role, prefixes in known.items() if role in roles},
    )
    return Adapter(info, kept)


def swap_roles(content: Adapter, style: Adapter, blocks: RoleBlocks | None = None) -> Adapter:
    """One adapter with the content half of `content` and the style half of `style`.

    Raises:
        UserError, AdapterMismatchError: as `select_roles`; also when the adapters are for different families, or when the one's
            content and the other's style sit in the same block, so that they are no halves of one adapter.
    """
    if None not in (content.info.family, style.info.family) and content.info.family != style.info.family:
        raise AdapterMismatchError(
            f"{content.info.name!r} was made for {content.info.family} and {style.info.name!r} for {style.info.family}: "
            "halves of different families do not fit into one adapter."
        )
    halves = [select_roles(content, [CONTENT], blocks), select_roles(style, [STYLE], blocks)]
    both = halves[0].patches.keys() & halves[1].patches.keys()
    if both:
        raise AdapterMismatchError(
            f"The content half of {content.info.name!r} and the style half of {style.info.name!r} sit in the same layers, "
            f"{next(iter(both))} for one: they were trained with different blocks. Use both as adapters of their own."
        )
    info = replace(
        halves[0].info,
        name=f"{content.info.name} + {style.info.name}",
        roles=ROLES,
        role_blocks={**halves[0].info.role_blocks, **halves[1].info.role_blocks},
        trigger=None,
        class_noun=None,
        description=f"Content of {content.info.name}, style of {style.info.name}.",
        training={},
        thumbnail=None,
    )
    return Adapter(info, {**halves[0].patches, **halves[1].patches})


def role_routes(adapter: Adapter, strengths: Mapping[str, float], blocks: RoleBlocks | None = None) -> list[Route]:
    """One route per role, each with its own strength; roles that are not named, and those at 0, do not act."""
    return [Route(select_roles(adapter, [role], blocks), strength) for role, strength in strengths.items() if strength != 0.0]
