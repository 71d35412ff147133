"""Which blocks of a base model hold content and which style: named by hand, found by a probe, or known of the family."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from studio.pipelines.adapters.roles import CONTENT, STYLE, RoleBlocks, family_roles
from studio.pipelines.errors import BaseModelError, UserError
from studio.pipelines.files import atomic_write_json

if TYPE_CHECKING:
    from studio.pipelines.base_model import BaseModel

PROBE_NAME = "block_probe.json"
PROBE_FORMAT = "studio-block-probe-1"


@dataclass(frozen=True, kw_only=True)
class BlockProbe:
    """What `studio probe-blocks` found for one base model.

    Attributes:
        base_hash: of the weights that were probed; for others it says nothing.
        content_block, style_block: the best pair. separates: whether it does better than random pairs of blocks.
        sentence: the finding, for people.
    """

    base_hash: str
    content_block: str
    style_block: str
    separates: bool
    sentence: str

    @property
    def blocks(self) -> RoleBlocks:
        """The pair, by role."""
        return {CONTENT: (self.content_block,), STYLE: (self.style_block,)}


@dataclass(frozen=True, kw_only=True)
class ChosenBlocks:
    """Blocks by role, and who says so. `probe` is None unless `source` is "probe"."""

    blocks: RoleBlocks
    source: Literal["named", "probe", "family"]
    probe: BlockProbe | None = None


def probe_path(base: BaseModel) -> Path:
    """Where the record of a base model lies: in its folder, or beside a single checkpoint with the ending changed."""
    if len(base.weight_files) == 1:
        return base.weight_files[0].with_suffix(f".{PROBE_NAME}")
    return base.root_dir / PROBE_NAME


def read_block_probe(base: BaseModel) -> BlockProbe | None:
    """The record that ships with `base`; None when there is none, or when it was made for other weights.

    Raises:
        BaseModelError: the file is no such record.
    """
    path = probe_path(base)
    if not base.weight_files or not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != PROBE_FORMAT:
            raise ValueError(content["format"])
        names = ("base_hash", "content_block", "style_block", "separates", "sentence")
        probe = BlockProbe(**{name: content[name] for name in names})
    except (ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"{path} is no record of a block probe: make it again with `studio probe-blocks`.") from error
    return probe if probe.base_hash == base.content_hash else None


def write_block_probe(path: Path, probe: BlockProbe, details: dict[str, Any]) -> None:
    """Write a record; `details` are further entries, for people."""
    content = {"format": PROBE_FORMAT, **{name: getattr(probe, name) for name in probe.__dataclass_fields__}}
    atomic_write_json(path, {**content, **details})


def choose_blocks(base: BaseModel, content_block: str | None = None, style_block: str | None = None) -> ChosenBlocks:
    """Where content and style sit in `base`: as named, else as its probe says, else as its family is known for.

    Raises:
        UserError: none of the three knows; or only one block is named, or both are the same or inside each other.
    """
    if (content_block is None) != (style_block is None):
        raise UserError("Name both blocks or neither: --content-block and --style-block belong together.")
    if content_block is not None and style_block is not None:
        if f"{content_block}.".startswith(f"{style_block}.") or f"{style_block}.".startswith(f"{content_block}."):
            raise UserError(f"Content and style need blocks of their own; {content_block} and {style_block} overlap.")
        return ChosenBlocks(blocks={CONTENT: (content_block,), STYLE: (style_block,)}, source="named")
    probe = read_block_probe(base)
    if probe is not None:
        return ChosenBlocks(blocks=probe.blocks, source="probe", probe=probe)
    known = family_roles(base.family.name)
    if known:
        return ChosenBlocks(blocks=known, source="family")
    raise UserError(
        f"It is not known which blocks of {base.source} hold content and which style: {base.family.title} has no published "
        f"split. Find them with `studio probe-blocks --base {base.source}`, or name them with --content-block and --style-block."
    )
