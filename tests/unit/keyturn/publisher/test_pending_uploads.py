"""Staged uploads that may be on the queue are sent again with their body (SPEC 6.4, 6.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keyturn.messages import Staged, StagedBody, UploadRequested
from keyturn.publisher.requests import new_id, sign, signed_now
from keyturn.publisher.staging import MAX_AGE_S, MAX_PENDING, PendingUploads
from tests.unit.keyturn.publisher.test_requests import SETTINGS, new_draft

if TYPE_CHECKING:
    import pytest


def _sent(**change: Any) -> UploadRequested:
    """An upload of 10 staged bytes."""
    return new_draft(**change).with_body(StagedBody(staged=Staged(size=10)))


def test_a_retry_has_the_same_key_and_body_and_bytes_of_its_own() -> None:
    kept, first = PendingUploads(), _sent()
    kept.remember(first)
    earlier = kept.earlier(_sent(upload_id=first.upload_id))
    assert earlier == first
    again = signed_now(first)
    assert again.requested_at > first.requested_at
    assert again == first.model_copy(update={"requested_at": again.requested_at})
    assert sign(SETTINGS, again).body != sign(SETTINGS, first).body


def test_another_object_under_the_same_id_is_another_upload() -> None:
    kept, first = PendingUploads(), _sent()
    kept.remember(first)
    for other in ({"project": "bob"}, {"object_key": "b"}):
        assert kept.earlier(_sent(upload_id=first.upload_id, **other)) is None
    assert kept.earlier(_sent()) is None


def test_what_the_broker_keeps_is_forgotten() -> None:
    kept, first = PendingUploads(), _sent()
    kept.remember(first)
    kept.forget(first.upload_id)
    assert kept.earlier(first) is None


def test_memory_is_bounded_in_number_and_by_the_age_of_the_staged_body(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    monkeypatch.setattr("keyturn.publisher.staging.time.monotonic", lambda: now_s)
    kept, first = PendingUploads(), _sent()
    kept.remember(first)
    now_s = MAX_AGE_S - 1
    kept.remember(signed_now(first))  # a second try, with the body of the first
    assert kept.earlier(first) is not None
    now_s = MAX_AGE_S
    assert kept.earlier(first) is None
    staged_anew = _sent(upload_id=first.upload_id)
    kept.remember(staged_anew)
    assert kept.earlier(first) == staged_anew
    for _ in range(MAX_PENDING):
        kept.remember(first.model_copy(update={"upload_id": new_id()}))
    assert kept.earlier(first) is None
