"""The TypeScript package by its own tools: one test a script of npm (`make typescript`)."""

from __future__ import annotations

import pytest

from tools import typescript

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    typescript.build()


@pytest.mark.parametrize("script", typescript.CHECKS)
def test_script(script: str) -> None:
    """Lint, generated types, types, unit tests, size, publint with attw, and the reference."""
    typescript.npm("run", "--silent", script, *typescript.CHECKS[script])
