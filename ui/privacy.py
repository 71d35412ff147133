"""What must be set before gradio is imported, so that no request leaves this machine."""

from __future__ import annotations

import os

QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",  # only this very word is read as no
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
}


def keep_quiet() -> None:
    """Turn off version checks, usage reports and the history of runs."""
    os.environ.update(QUIET)
