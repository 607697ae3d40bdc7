"""A serving process collects garbage less often (SPEC 7, 9)."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from keyturn_workers.worker.gc import reduce_garbage_collection

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


@pytest.mark.slow
def test_what_was_loaded_at_the_start_is_left_out_of_collections() -> None:
    before = gc.get_freeze_count()
    reduce_garbage_collection()
    assert gc.get_freeze_count() > before + 1000
    assert gc.get_threshold()[0] == 50_000
    assert gc.isenabled()
