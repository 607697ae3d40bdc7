"""Each test runs as in a process with traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.unit.keyturn_workers.pipeline.tracing.recorder import as_in_a_process

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _as_in_a_process() -> Iterator[None]:
    with as_in_a_process():
        yield
