"""How the libraries are called while files are read: without their progress bars, and with their errors in one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from studio.pipelines.errors import BaseModelError, StudioError


@contextmanager
def loading(what: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever a library raises while it reads `what` into a `BaseModelError` of one sentence.

    Errors of the studio's own, and those of the types in `passing`, pass unchanged.
    """
    try:
        with quiet_libraries():
            yield
    except Exception as error:
        if isinstance(error, (StudioError, *passing)):
            raise
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise BaseModelError(f"Cannot load the {what}: {reason}") from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence, inside the block, the progress bars and notices of diffusers and transformers, and put their settings back."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    levels = (diffusers_logging.get_verbosity(), transformers_logging.get_verbosity())
    bars = (diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled())
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(diffusers|transformers|huggingface_hub)\b")
            yield
    finally:
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])
        if bars[0]:
            diffusers_logging.enable_progress_bar()
        if bars[1]:
            transformers_logging.enable_progress_bar()
