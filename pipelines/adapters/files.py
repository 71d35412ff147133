"""Adapters to and from files."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from studio.pipelines.adapters.adapter import Adapter
from studio.pipelines.adapters.formats import DIALECTS
from studio.pipelines.adapters.patches import Patch
from studio.pipelines.adapters.paths import ParameterPath
from studio.pipelines.adapters.serialization.dialect import Dialect
from studio.pipelines.adapters.serialization.header import TensorEntry, read_header
from studio.pipelines.adapters.serialization.metadata import Redaction, build_metadata, read_info
from studio.pipelines.errors import AdapterFileError, UserError
from studio.pipelines.families import FAMILIES, ModelFamily, family_named
from studio.pipelines.files import atomic_save_safetensors


def load_adapter(path: Path | str) -> Adapter:
    """The adapter in the file at `path`, of any dialect; every tensor of the file is in it.

    The tensors keep the type they are stored in and are on the CPU.

    Raises:
        MissingFileError: there is no file.
        AdapterFileError: it is damaged, of a kind that is not read here, has numbers that are none, or tensors are left over.
    """
    path = Path(path)
    header = read_header(path)
    dialect = dialect_of(path, header.tensors)
    try:
        tensors = load_file(path)
        _check_numbers(tensors, dialect)
        patches = dialect.read(tensors, header.metadata)
        num_read = sum(len(patch.parameters()) for patch in patches.values()) + sum(map(dialect.is_exact, tensors))
        assert num_read == len(tensors), f"{num_read} of {len(tensors)} tensors were read"
    except (AdapterFileError, SafetensorError) as error:
        raise AdapterFileError(f"{path} cannot be read as an adapter: {error}") from error
    info = read_info(header.metadata, default_name=path.stem)
    adapter = Adapter(info, patches)
    family = info.family if info.family is not None else guess_family(patches)
    return Adapter(replace(info, type=adapter.type, family=family), patches)


def save_adapter(
    adapter: Adapter,
    path: Path | str,
    dialect: str = "peft",
    *,
    dtype: torch.dtype = torch.float16,
    redact: Redaction = "none",
    family: ModelFamily | None = None,
) -> None:
    """Write `adapter` to the file at `path`, in one step.

    Args:
        dialect: "peft" (diffusers and PEFT read it), "kohya" (A1111, Forge, ComfyUI, InvokeAI, diffusers) or "lycoris"
            (A1111, ComfyUI), which has kohya's names and can also hold what is no LoRA; "sparse" or "sparse-values" for
            sparse changes, which the studio alone reads.
        dtype: of the tensors; kohya's alphas are always exact, in float32.
        redact: what metadata to leave out: "none", "private" (paths and captions) or "minimal" (all that loading can do
            without).
        family: of the base model; by default the one in the adapter's info.

    Raises:
        AdapterFileError: the dialect cannot hold this adapter, or a number does not fit into `dtype`.
        OutputError: the file cannot be written.
    """
    writer = _writer(dialect, adapter)
    family = family if family is not None else _family_of(adapter)
    adapter = Adapter(replace(adapter.info, type=adapter.type, family=family.name), adapter.patches)
    assert writer.write is not None
    content = writer.write(adapter, family)
    if not content.tensors:
        raise AdapterFileError(f"The adapter {adapter.info.name!r} changes nothing, so there is nothing to write.")
    tensors = {key: _stored(key, tensor, dtype, writer) for key, tensor in content.tensors.items()}
    metadata = build_metadata(
        adapter,
        family,
        ldm_names=dialect in ("kohya", "lycoris") and bool(family.kohya_names),
        tensors_hash=_tensors_hash(tensors),
        redact=redact,
    )
    atomic_save_safetensors(path, tensors, {**metadata, **content.needed_metadata})


def dialects_for(adapter: Adapter) -> tuple[str, ...]:
    """The formats of `save_adapter` that can hold patches of the adapter's kinds, the one to prefer first."""
    kinds = adapter.kinds().keys()
    return tuple(dialect.format_name for dialect in DIALECTS if dialect.write is not None and kinds <= dialect.kinds)


def dialect_of(path: Path, tensors: Mapping[str, TensorEntry]) -> Dialect:
    """The dialect that a file's header is of; `AdapterFileError` with what it may be instead if there is none."""
    shapes = {key: entry.shape for key, entry in tensors.items()}
    for dialect in DIALECTS:
        if dialect.detect(shapes):
            return dialect
    if not shapes:
        raise AdapterFileError(f"{path} holds no tensors.")
    for telltale, what in _NO_ADAPTERS:
        if any(telltale in key for key in shapes):
            raise AdapterFileError(f"{path} is no adapter that can be read here: {what}.")
    example = next(iter(shapes))
    raise AdapterFileError(f"{path} is no adapter of a known kind; one of its {len(shapes)} tensors is called {example!r}.")


def _writer(format_name: str, adapter: Adapter) -> Dialect:
    """The dialect that `format_name` means for `adapter`: the first that holds its kinds of patches, or else the first."""
    called = [each for each in DIALECTS if each.write is not None and each.format_name == format_name]
    if not called:
        names = ", ".join(dict.fromkeys(each.format_name for each in DIALECTS if each.write is not None))
        raise UserError(f"There is no file format {format_name!r} to write; the formats are: {names}.")
    kinds = adapter.kinds().keys()
    fitting = next((each for each in called if kinds <= each.kinds), None)
    if fitting is None:
        held = ", ".join(sorted(set().union(*(each.kinds for each in called))))
        others = dict.fromkeys(("lokr" if name == "lycoris" and kinds == {"lokr"} else name) for name in dialects_for(adapter))
        raise AdapterFileError(
            f"A {format_name} file holds {held} patches, and this adapter has {' and '.join(kinds)} ones. Export "
            f"{', '.join(f'--format {name}' for name in (*others, 'lora', 'diff'))}."
        )
    return fitting


def guess_family(patches: Mapping[ParameterPath, Patch]) -> str | None:
    """The family's name by the width of the text features, or by a second text encoder; None if nothing tells."""
    if any(path.component == "text_encoder_2" for path in patches):
        return "sdxl"
    for path, patch in patches.items():
        if path.component == "unet" and path.module.endswith(("attn2.to_k", "attn2.to_v")):
            in_features = getattr(patch, "in_features", None)
            for family in FAMILIES:
                if in_features == family.cross_attention_dim:
                    return family.name
    return None


_NO_ADAPTERS = (
    ("model.diffusion_model.", "it is a whole checkpoint; use it with --base"),
    ("first_stage_model.", "it is a whole checkpoint or an autoencoder"),
    ("base_model.model.", "it was saved by PEFT itself and does not say of which component it is; save it with diffusers"),
    ("transformer.", "it was made for a transformer model such as FLUX or SD3, and the studio runs SD1.5, SD2 and SDXL"),
    ("diffusion_model.", "it was made for a model that the studio does not run, such as FLUX or Wan"),
    ("emb_params", "it is a textual-inversion embedding"),
    ("clip_l", "it is a textual-inversion embedding"),
    ("lycoris_", "it was made for a model that the studio does not run"),
    ("lora_te3", "it was made for SD3 or FLUX, and the studio runs SD1.5, SD2 and SDXL"),
    ("control_model", "it is a ControlNet"),
)


def _family_of(adapter: Adapter) -> ModelFamily:
    name = adapter.info.family if adapter.info.family is not None else guess_family(adapter.patches)
    if name is None:
        raise UserError(f"It is not known which model family the adapter {adapter.info.name!r} is for; name it.")
    return family_named(name)


def _check_numbers(tensors: Mapping[str, Tensor], dialect: Dialect) -> None:
    for key, tensor in tensors.items():
        if tensor.numel() == 0:
            raise AdapterFileError(f"the tensor {key!r} is empty.")
        if not tensor.dtype.is_floating_point and not dialect.is_exact(key):
            raise AdapterFileError(f"the tensor {key!r} holds {tensor.dtype} values, not floating-point numbers.")
        if not bool(torch.isfinite(tensor.to(torch.float32)).all()):
            raise AdapterFileError(f"the tensor {key!r} has NaN or infinite values; the training that made it went wrong.")


def _stored(key: str, tensor: Tensor, dtype: torch.dtype, dialect: Dialect) -> Tensor:
    stored = tensor.detach().to("cpu")
    if not dialect.is_exact(key):
        stored = stored.to(dtype)
    if not bool(torch.isfinite(stored).all()):
        raise AdapterFileError(f"The tensor {key!r} has values that are not finite as {str(dtype).removeprefix('torch.')}.")
    return stored.contiguous()


def _tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the bytes after the header; the order of tensors does not depend on the metadata."""
    data = safetensors_bytes(dict(tensors))
    (header_bytes,) = struct.unpack("<Q", data[:8])
    return hashlib.sha256(data[8 + header_bytes :]).hexdigest()
