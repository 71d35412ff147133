"""The OpenAPI description holds: whatever it allows is answered as it says, and never with a mistake of ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.failures import FailureGroup
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from studio.api.access import Access
from studio.api.app import create_app
from studio.api.settings import ApiSettings
from studio.service import Studio
from tests.api.conftest import GENEROUS, V1, adapter_item, counter_of

EXAMPLES = 8
"""Of each operation."""

NEEDS_TORCH = ("/upload/adapter", "/upload/picture")
"""Their files are read by what imports torch; `test_uploads` sends them real and hostile ones."""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    with Studio(tmp_path_factory.mktemp("description") / "home") as studio:
        adapter_item(studio)
        yield create_app(studio, ApiSettings(login=True, names=("testserver",), limits=GENEROUS))


@pytest.fixture(scope="module")
def token(app: FastAPI, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with Access(counter_of(app).studio.home) as access:
        return {"Authorization": f"Bearer {access.create('everything', scopes=('admin',))[1]}"}


def tried(operation, token: dict[str, str]) -> None:
    """`EXAMPLES` requests, some that the description allows and some that it does not.

    What it allows may still be refused: a description cannot say which adapters there are, or that 2 cats need 2 words.
    """

    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
        derandomize=True,
        database=None,
    )
    @given(case=operation.as_strategy(GenerationMode.POSITIVE) | operation.as_strategy(GenerationMode.NEGATIVE))
    def try_one(case) -> None:
        if case.path.endswith("/events"):
            case.query = {**(case.query or {}), "follow": "false"}  # a stream of a waiting job has no end
        case.call_and_validate(headers=token, excluded_checks=[positive_data_acceptance])

    try_one()


def test_whatever_is_sent_is_answered_as_described(app: FastAPI, token: dict[str, str]):
    schema = schemathesis.openapi.from_asgi(f"{V1}/openapi.json", app, headers=token)
    wrong, seen = [], 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in NEEDS_TORCH:
            continue
        seen += 1
        try:
            tried(operation, token)
        except FailureGroup as failures:  # all that is wrong is told at once
            wrong += [f"{operation.label}: {failure.title}: {failure.message}" for failure in failures.exceptions]
    assert seen > 25 and not wrong, "\n\n".join(wrong)
