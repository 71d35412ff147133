"""`studio token` as a person calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studio.api.access import Access
from studio.cli.main import main
from studio.storage.home import Home


@pytest.fixture
def token(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as end:
            main(["token", *arguments, "--home", str(tmp_path)])
        printed = capsys.readouterr()
        assert end.value.code == code, printed.err
        return printed.out if code == 0 else printed.err

    return call


def test_made_listed_and_revoked(token, tmp_path: Path):
    text = token(
        "create", "anna", "--scope", "read", "--scope", "library", "--owner", "anna's house".replace("'", ""), "--days", "3"
    )
    with Access(Home(tmp_path)) as access:
        caller = access.caller_of_token(text.strip())
        assert caller is not None and caller.owner == "annas house" and caller.scopes == {"read", "library"}
        listed = token("list")
        assert "anna" in listed and "valid until" in listed and text.strip().rpartition("_")[2] not in listed
        token("revoke", "anna")
        assert access.caller_of_token(text.strip()) is None
    assert token("list") == "" and "revoked" in token("list", "--all")
    assert json.loads(token("list", "--all", "--json"))[0]["scopes"] == ["read", "library"]
    assert "no token 'anna'" in token("revoke", "anna", code=3)
    assert "no scope" in token("create", "ben", "--scope", "root", code=2)
