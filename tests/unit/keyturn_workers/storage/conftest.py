"""What the storage's unit tests share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def no_given_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that the environment gives is for other tests."""
    for name in os.environ:
        if name.startswith(("KEYTURN_S3_", "AWS_")):
            monkeypatch.delenv(name)
