"""Print the API's OpenAPI description: `python -m studio.api.description > openapi.json`."""

from __future__ import annotations

import json
import tempfile

from studio.api.app import api_of, create_app, openapi
from studio.service import Studio


def description() -> str:
    """The description as JSON text, the same for every home."""
    with tempfile.TemporaryDirectory() as folder, Studio(folder) as studio:
        return json.dumps(openapi(api_of(create_app(studio))), indent=1, sort_keys=True)


if __name__ == "__main__":
    print(description())
