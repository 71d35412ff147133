"""The errors a person can cause or meet, as one small tree.

Every message is one sentence or two that say what is wrong, where, and what to do about it. The command line prints the
message alone, without a traceback, and leaves with the class's `exit_code`. A mistake of ours is an `AssertionError` or
any other exception, and shows its traceback.
"""

from __future__ import annotations

import signal
from typing import ClassVar


class StudioError(Exception):
    """Something went wrong in a way that a sentence can explain."""

    exit_code: ClassVar[int] = 1


class UserError(StudioError):
    """What was asked for cannot be done as asked: a bad value, file or combination."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, of the wrong type or contradicts another one."""


class DatasetError(UserError):
    """A folder of training pictures cannot be used."""


class ImageError(DatasetError):
    """One picture cannot be used: unreadable, truncated, too small, too large."""


class AdapterFileError(UserError):
    """A file is not an adapter that can be read in full."""


class AdapterMismatchError(UserError):
    """An adapter does not fit the base model it is to be used with."""


class BaseModelError(UserError):
    """A base model cannot be loaded or lacks something that is needed."""


class OutputError(UserError):
    """The result cannot be written: no room on the disk, or no permission."""


class ResumeError(UserError):
    """A run cannot be continued as asked."""


class MissingDependencyError(UserError):
    """An optional package is needed and not installed."""


class MissingFileError(StudioError):
    """A model, adapter or other input file does not exist."""

    exit_code = 3


class NonFiniteLossError(StudioError):
    """The loss became NaN or infinite; the last good state was kept."""


class Cancelled(StudioError):  # noqa: N818 - it is no error, only the end asked for
    """The work was called off by the program that had ordered it."""


class Interrupted(StudioError):  # noqa: N818 - it is no error, only the end asked for
    """The work was stopped from outside, and what can be kept was kept.

    Attributes:
        signal_number: the signal received (SIGINT, SIGTERM, ...).
        exit_code: 128 + `signal_number`, the shell's convention: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str = "Interrupted.", signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal_number = int(signal_number)
        self.exit_code = 128 + self.signal_number  # type: ignore[misc]
