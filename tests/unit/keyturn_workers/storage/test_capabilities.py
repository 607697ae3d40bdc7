"""What code may rely on where the bucket was not measured (SPEC 10)."""

from __future__ import annotations

from keyturn.identifiers import byte_order, path_order
from keyturn_workers.storage import Capabilities


def test_a_bucket_lists_by_bytes_unless_it_was_measured() -> None:
    keys = ["a/x", "a-b", "a", "a.b/c", "a0", "\U00010000", "\uffff"]
    by_bytes = sorted(keys, key=Capabilities().order)
    assert by_bytes == sorted(keys, key=byte_order) == sorted(keys, key=str.encode)
    by_path = ["a", "a/x", "a-b", "a.b/c", "a0", "\uffff", "\U00010000"]
    assert sorted(keys, key=Capabilities(lists_by_path=True).order) == by_path
    assert sorted(keys, key=path_order) == by_path
