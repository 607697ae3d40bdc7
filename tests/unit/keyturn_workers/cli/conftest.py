"""A clean environment for every test: commands read it, and --env-file extends it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.unit.keyturn_workers.cli.fakes import Commands, FakeKms, commands, fake_kms

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def clean_environment() -> Iterator[None]:
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("KEYTURN_"):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands with a fake publisher."""
    return commands(tmp_path, monkeypatch)


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> FakeKms:
    """Commands with a fake provider of master keys."""
    return fake_kms(monkeypatch)
