"""A bucket in memory, in place of the one that a command opens."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from tools.harness.memory_storage import MemoryStorage


def use_bucket(monkeypatch: pytest.MonkeyPatch, module: str, storage: MemoryStorage) -> None:
    """Let the commands of a module of `keyturn_workers.cli` open this bucket."""

    @asynccontextmanager
    async def opened(*_: object, **__: object) -> AsyncIterator[MemoryStorage]:
        yield storage

    monkeypatch.setattr(f"keyturn_workers.cli.{module}.open_bucket", opened)
