"""A console for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.keyturn_workers.console.sweeps.scene import Scene, scenes

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def console() -> Iterator[Scene]:
    yield from scenes()
