"""A KMS that answers as a test says, and an AWS credential chain of this test alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.keyturn_workers.keys.master_keys.fake_servers import KmsStub, kms_stub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
def credentials_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where the standard chain finds credentials."""
    path = tmp_path / "credentials"
    path.write_text(credentials("FIRST"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return path


def credentials(access_key_id: str) -> str:
    """The text of a credentials file."""
    return f"[default]\naws_access_key_id={access_key_id}\naws_secret_access_key=of-this-test\n"


@pytest.fixture
async def stub(credentials_file: Path) -> AsyncIterator[KmsStub]:
    """A running stub, with credentials for it."""
    del credentials_file
    async with kms_stub() as running:
        yield running
