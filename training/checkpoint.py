"""Checkpoints: everything a run needs to go on bit-equal, as safetensors + JSON, written whole or not at all.

A checkpoint is a folder. It is filled under a temporary name, flushed to the disk and renamed, so a folder with a real
name is complete; a scan still checks every file's size, in case the disk itself lost something.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from studio.pipelines.errors import OutputError, ResumeError
from studio.pipelines.files import atomic_save_safetensors
from studio.training.state_tree import pack_tree, storable, unpack_tree

FORMAT_VERSION = 1
STATE_JSON = "state.json"
STATE_TENSORS = "state.safetensors"
ADAPTER_FILE = "adapter.safetensors"

_NAME = re.compile(r"step-(\d{6,})(?:-micro-(\d{3,}))?")
_TEMPORARY = ".writing-"


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """One moment of a run.

    Attributes:
        step: optimizer steps done. micro_step: batches seen (= data position).
        trainable: the method's tensors, in training mode, full precision.
        gradients: what was accumulated since the last optimizer step; empty at its edge.
        optimizer: `Optimizer.state_dict()`. ema: averaged tensors; ema_updates: how many updates they had.
        rng: of torch, numpy and Python. facts: JSON-like notes of the trainer (scores so far, what the run is made of).
    """

    step: int
    micro_step: int
    trainable: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    ema: Mapping[str, Tensor] = field(default_factory=dict)
    ema_updates: int = 0
    rng: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A complete checkpoint folder; they sort by age."""

    step: int
    micro_in_step: int
    path: Path = field(compare=False)

    @property
    def adapter_path(self) -> Path:
        """The adapter as it was then, ready to use."""
        return self.path / ADAPTER_FILE


def checkpoint_name(step: int, micro_in_step: int) -> str:
    """`step-000100`, or `step-000100-micro-003` in the middle of an accumulation."""
    return f"step-{step:06d}" + (f"-micro-{micro_in_step:03d}" if micro_in_step else "")


def write_checkpoint(folder: Path, state: TrainState, micro_in_step: int, write_adapter: Callable[[Path], None]) -> Checkpoint:
    """Write `state`, and the adapter file through `write_adapter(path)`, into a new folder under `folder`.

    Raises OutputError when the disk is full or not writable; nothing half-written stays then.
    """
    name = checkpoint_name(state.step, micro_in_step)
    checkpoint = Checkpoint(state.step, micro_in_step, folder / name)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if is_complete(checkpoint.path):
            return checkpoint
        temporary = folder / f"{_TEMPORARY}{os.getpid()}-{name}"
        temporary.mkdir()
        try:
            _fill(temporary, state, write_adapter)
            remove_checkpoint(checkpoint.path)
            os.replace(temporary, checkpoint.path)
            _flush(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return checkpoint


def read_checkpoint(checkpoint: Checkpoint) -> TrainState:
    """Read a checkpoint back, exactly. Raises ResumeError when it can't be read."""
    try:
        tree = json.loads((checkpoint.path / STATE_JSON).read_text(encoding="utf-8"))
        tensors = load_file(checkpoint.path / STATE_TENSORS)
        if tree["format"] != FORMAT_VERSION:
            raise ResumeError(f"{checkpoint.path} was written by another version of the studio (format {tree['format']})")
        return TrainState(**unpack_tree(tree["state"], tensors))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ResumeError(f"the checkpoint {checkpoint.path} can't be read: {error}") from error


def complete_checkpoints(folder: Path) -> list[Checkpoint]:
    """All complete checkpoints in `folder`, oldest first; anything else there is passed over."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and is_complete(path):
            found.append(Checkpoint(int(match[1]), int(match[2] or 0), path))
    return sorted(found)


def is_complete(path: Path) -> bool:
    """True when every file the checkpoint lists is there with its size."""
    try:
        sizes = json.loads((path / STATE_JSON).read_text(encoding="utf-8"))["file_bytes"]
        return all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, KeyError, ValueError, AttributeError):
        return False


def rotate_checkpoints(folder: Path, keep: int, protected: Collection[int]) -> None:
    """The newest `keep` (at least one) checkpoints and those of the `protected` steps stay whole.

    Older ones keep their adapter file, which is small and can be used, and lose the state that only resuming needs; one
    from the middle of an accumulation goes altogether.
    """
    for checkpoint in complete_checkpoints(folder)[: -max(1, keep)]:
        if checkpoint.micro_in_step:
            remove_checkpoint(checkpoint.path)
        elif checkpoint.step not in protected:
            (checkpoint.path / STATE_JSON).unlink()
            (checkpoint.path / STATE_TENSORS).unlink()


def adapter_file_of(folder: Path, step: int) -> Path:
    """The adapter file of a step's checkpoint, whole or rotated."""
    return folder / checkpoint_name(step, 0) / ADAPTER_FILE


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint folder; it stops counting as complete before its files go."""
    (path / STATE_JSON).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


@contextmanager
def output_errors(folder: Path) -> Iterator[None]:
    """Full disks and missing permissions become one sentence (OutputError)."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(f"the disk is full: can't write to {folder}; free some space and resume") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise OutputError(f"can't write to {folder}: {error.strerror}; choose another --output") from error
        raise
    except SafetensorError as error:
        if "No space left" in str(error):
            raise OutputError(f"the disk is full: can't write to {folder}; free some space and resume") from error
        raise


def _fill(folder: Path, state: TrainState, write_adapter: Callable[[Path], None]) -> None:
    packed, tensors = pack_tree({name: getattr(state, name) for name in state.__dataclass_fields__}, "state")
    atomic_save_safetensors(folder / STATE_TENSORS, storable(tensors))
    write_adapter(folder / ADAPTER_FILE)
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    for name in sizes:
        _flush(folder / name)
    document = {"format": FORMAT_VERSION, "file_bytes": sizes, "state": packed}
    with open(folder / STATE_JSON, "w", encoding="utf-8") as stream:
        json.dump(document, stream)
        stream.flush()
        os.fsync(stream.fileno())
    _flush(folder)


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows can't open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
