"""What a file dialect is, and the steps that all dialects take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.patches import Patch
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.errors import AdapterFileError, AdapterMismatchError
from studio.pipelines.families import ModelFamily

Parts = Mapping[str, Tensor]
"""The tensors of one layer, by what follows the layer's name in their keys."""


Shapes = Mapping[str, tuple[int, ...]]
"""The shapes of a file's tensors by key."""


class FileContent(NamedTuple):
    """What goes into a file: tensors, and the metadata without which a reader would get the strength wrong."""

    tensors: dict[str, Tensor]
    needed_metadata: dict[str, str]


@dataclass(frozen=True)
class Dialect:
    """One way to name an adapter's tensors.

    Attributes:
        name: short; in `--format`, where there is no `option`.
        title: for people.
        detect: whether a file with these keys and shapes is of this dialect; never true for a file of another one.
        read: (tensors, metadata) -> patches; `AdapterFileError` if one tensor is left over or does not fit.
        write: (adapter, family) -> what goes into the file; None where the dialect is only read.
        kinds: which kinds of patches it can hold, though perhaps not in every shape.
        is_exact: whether the tensor with this key is kept as it is, whatever type the others are stored in, because it is a
            scale, positions or a shape rather than the adapter's numbers.
        option: how `--format` and `save_adapter` call it: several dialects can be one tool's, for different kinds of patches.
    """

    name: str
    title: str
    detect: Callable[[Shapes], bool]
    read: Callable[[Mapping[str, Tensor], Mapping[str, str]], dict[ParameterPath, Patch]]
    write: Callable[[Adapter, ModelFamily], FileContent] | None = None
    kinds: frozenset[str] = frozenset({"lora", "dora"})
    is_exact: Callable[[str], bool] = lambda key: key.endswith(".alpha")
    option: str | None = None

    @property
    def format_name(self) -> str:
        """What it is called in `--format`."""
        return self.name if self.option is None else self.option


class Scale(NamedTuple):
    """What a dialect knows about a layer's scale outside the layer's own tensors; alpha None means alpha = rank."""

    alpha: float | None = None
    use_rslora: bool = False


@dataclass(frozen=True)
class LayerCodec:
    """How one kind of patch is written in one dialect.

    Attributes:
        patch_type: the class.
        required, optional: which parts a layer of this kind has.
        decode: parts and scale -> patch. encode: patch -> parts.
        parameter: which parameter of the layer it changes.
    """

    patch_type: type
    required: frozenset[str]
    optional: frozenset[str]
    decode: Callable[[Parts, Scale], Patch]
    encode: Callable[[Any], dict[str, Tensor]]
    parameter: str = "weight"

    def holds(self, path: ParameterPath, parts: frozenset[str]) -> bool:
        """Whether these parts at this place are such a layer's."""
        return path.parameter == self.parameter and self.required <= parts <= self.required | self.optional


def group_by_layer(
    tensors: Mapping[str, Tensor], parse: Callable[[str], tuple[ParameterPath, str] | None]
) -> dict[ParameterPath, dict[str, Tensor]]:
    """Sort tensors by the layer that `parse` finds in their key.

    Raises:
        AdapterFileError: `parse` finds none for some, or the same place twice.
    """
    groups: dict[ParameterPath, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        parsed = parse(key)
        if parsed is None:
            unknown.append(key)
            continue
        path, part = parsed
        parts = groups.setdefault(path, {})
        if part in parts:
            raise AdapterFileError(f"it has the {part} of {path} twice, the second time as {key!r}.")
        parts[part] = tensor
    if unknown:
        left_over = f"{len(unknown)} of its {len(tensors)} tensors"
        raise AdapterFileError(f"{left_over} belong to no module of a model known here: {_few(unknown)}.")
    return groups


def decode_layers(
    groups: Mapping[ParameterPath, Parts], codecs: Sequence[LayerCodec], scale_of: Callable[[ParameterPath], Scale]
) -> dict[ParameterPath, Patch]:
    """Make a patch of each layer's tensors, using all of them.

    Raises:
        AdapterFileError: no codec has exactly these parts, or the shapes do not fit together.
    """
    patches: dict[ParameterPath, Patch] = {}
    for path, parts in groups.items():
        names = frozenset(parts)
        codec = next((codec for codec in codecs if codec.holds(path, names)), None)
        if codec is None:
            raise AdapterFileError(f"{_kind_of(names)}: at {path} it has {_few(sorted(names))}.")
        try:
            patches[path] = codec.decode(parts, scale_of(path))
        except AdapterMismatchError as error:
            raise AdapterFileError(f"the tensors of {path} do not fit together. {error}") from error
    return patches


def encode_layers(adapter: Adapter, codecs: Sequence[LayerCodec], key_of: Callable[[ParameterPath], str]) -> dict[str, Tensor]:
    """Every patch's tensors, with keys `key_of(path).part`.

    Raises:
        AdapterFileError: the dialect has no way to write one of the patches.
    """
    tensors: dict[str, Tensor] = {}
    for path, patch in adapter.patches.items():
        codec = next((each for each in codecs if type(patch) is each.patch_type and path.parameter == each.parameter), None)
        if codec is None:
            raise AdapterFileError(f"This file format has no way to write the {patch.kind} patch of {path}; export another one.")
        for part, tensor in codec.encode(patch).items():
            tensors[f"{key_of(path)}.{part}"] = tensor
    return tensors


_TELLTALES = (
    ("oft_", "it holds OFT layers, which cannot be read"),
    ("boft_", "it holds BOFT layers, which cannot be read"),
    ("lora_mid", "it holds Tucker-decomposed LoRA layers, which cannot be read"),
)


def _kind_of(parts: Iterable[str]) -> str:
    names = tuple(parts)
    for telltale, sentence in _TELLTALES:
        if any(name.startswith(telltale) for name in names):
            return sentence
    if "dora_scale" in names and any(name.startswith(("lokr_", "hada_")) for name in names):
        return "it has DoRA magnitudes (dora_scale) on LoKr or LoHa layers, which are read on LoRA layers only"
    return "it lacks tensors or has surplus ones"


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown}, … ({len(names)} in all)"
