"""A studio at a home of its own, and its page served for real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from studio.ui.proofs.serving import Served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page without a worker: what is handed in waits."""
    page = Served(tmp_path_factory.mktemp("home"), worker=False)
    yield page
    page.close()


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A page whose jobs are done."""
    page = Served(tmp_path_factory.mktemp("home"), worker=True)
    yield page
    page.close()
