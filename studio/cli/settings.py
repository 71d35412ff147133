"""The `--set section.key=value` option that several commands take."""

from __future__ import annotations

from collections.abc import Sequence

from studio.pipelines.errors import ConfigError


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """Settings by key. Raises ConfigError for a text that is not `section.key=value`."""
    return dict(_assignment(text) for text in texts)


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: write it as section.key=value, for example --set optimizer.name=prodigy")
    return key.strip(), value.strip()
