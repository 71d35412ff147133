"""Where an adapter's halves sit, in a file's header: `studio.roles`, a JSON object from role to prefixes of module paths."""

from __future__ import annotations

import json
from collections.abc import Mapping

ROLES_KEY = "studio.roles"


def role_entries(role_blocks: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """The entry for an adapter with roles; none for one without."""
    if not role_blocks:
        return {}
    return {ROLES_KEY: json.dumps({role: list(prefixes) for role, prefixes in role_blocks.items()}, ensure_ascii=False)}


def read_role_blocks(metadata: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Role -> prefixes; empty where the entry is missing or cannot be understood."""
    try:
        content = json.loads(metadata.get(ROLES_KEY, "{}"))
    except (json.JSONDecodeError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    found = {str(role): value for role, value in content.items() if isinstance(value, list) and value}
    if not all(isinstance(prefix, str) and prefix for value in found.values() for prefix in value):
        return {}
    return {role: tuple(value) for role, value in found.items()}
