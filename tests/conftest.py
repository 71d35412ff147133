"""What every test runs under: no network, no person's caches, the same examples every time."""

import os
import socket
import tempfile
from pathlib import Path

# Read once at import by huggingface_hub and gradio, so it stands before any of them is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HOME"] = str(Path(tempfile.gettempdir(), "studio-tests-empty-hub"))
os.environ["MPLBACKEND"] = "Agg"
for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU"):
    os.environ.pop(name, None)

import pytest
from hypothesis import settings

# Times say nothing on a busy machine; the same examples each time, so that a red test stays red.
settings.register_profile("studio", deadline=None, derandomize=True, database=None)
settings.load_profile("studio")

LOCAL_HOSTS = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "", None}


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Any look-up of a foreign host fails the test that caused it; the product has to work without."""
    look_up = socket.getaddrinfo

    def local_only(host, *arguments, **options):
        name = host.decode() if isinstance(host, bytes) else host
        if name not in LOCAL_HOSTS and name != socket.gethostname():
            raise AssertionError(f"a test reached for the network: {name}")
        return look_up(host, *arguments, **options)

    socket.getaddrinfo = local_only
    yield
    socket.getaddrinfo = look_up
