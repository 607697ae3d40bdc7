"""A letter is described in a few hundred bytes, whatever it claims (SPEC 12)."""

from __future__ import annotations

import sys

import pytest

from keyturn.identifiers import parse_time
from keyturn_workers.console.dead.letters import (
    OBSTACLES,
    Compactor,
    IndexedLetter,
    digest_number,
    digest_text,
)
from keyturn_workers.dead_letters.letters import describe
from tests.unit.keyturn_workers.console.dead.letters import UPLOADS, indexed
from tests.unit.keyturn_workers.dead_letters.letters import LONG_AGO, Letter, letter, upload

_UNSIGNED = "keyturn.unsigned.dead"
_DEAD_AT = "2026-11-24T10:00:00.000000Z"


def _compact(sent: Letter, queue: str = UPLOADS) -> IndexedLetter:
    return Compactor().compact(sent.message, queue)


def test_what_a_letter_claims_is_kept() -> None:
    document = upload()
    sent = letter(document, "bad_seal", **{"keyturn-dead-at": _DEAD_AT})
    kept = _compact(sent)
    assert (kept.message_id, kept.type, kept.project) == (
        document["upload_id"], "upload.requested", "acme",
    )  # fmt: skip
    assert (kept.code, kept.detail, kept.publisher) == ("bad_seal", "too long ago", "api")
    assert kept.requested_instant == parse_time(LONG_AGO)
    assert kept.dead_instant == kept.since_at == parse_time(_DEAD_AT)
    assert (kept.size_bytes, kept.work_queue) == (len(sent.body), "keyturn.upload")
    assert kept.digest_text == describe(sent.message, UPLOADS).digest


def test_what_is_not_claimed_is_empty() -> None:
    kept = _compact(Letter(b"\xff", {}))
    assert {kept.message_id, kept.type, kept.project, kept.code, kept.publisher} == {""}
    assert (kept.requested_at, kept.dead_at, kept.since_at) == (None, None, None)


@pytest.mark.parametrize(
    ("sent", "queue", "obstacle"),
    [
        (letter(upload(), "bad_seal"), UPLOADS, ""),
        (letter(upload(), "already_exists", **{"keyturn-body-dropped": "0"}), UPLOADS, "body"),
        (letter(upload()), UPLOADS, "expired"),
        (letter(upload(), "bad_signature"), _UNSIGNED, ""),
        (Letter(b"{}", {}), _UNSIGNED, "type"),
    ],
)
def test_what_keeps_a_letter_from_being_replayed_is_known(
    sent: Letter, queue: str, obstacle: str
) -> None:
    assert _compact(sent, queue).obstacle == obstacle
    assert obstacle in OBSTACLES


def test_headers_of_any_length_take_little_memory() -> None:
    """Anyone with write access to the broker chooses them."""
    long = "x" * 50_000
    headers = dict.fromkeys(("keyturn-code", "keyturn-detail", "keyturn-publisher"), long)
    body = f'{{"type": "{long}", "project": "{long}", "requested_at": "{long}"}}'.encode()
    kept = _compact(Letter(body, headers, long))
    texts = (kept.message_id, kept.type, kept.project, kept.code, kept.detail, kept.publisher)
    assert max(map(len, texts)) == 300
    assert kept.requested_at is None


def test_equal_texts_are_held_once() -> None:
    compactor = Compactor()
    first, second = (
        compactor.compact(letter(upload(), "bad_seal").message, UPLOADS) for _ in range(2)
    )
    assert first.detail is second.detail
    assert first.project is second.project


def test_a_letter_has_no_dictionary_of_its_own() -> None:
    assert not hasattr(indexed(1), "__dict__")
    assert sys.getsizeof(indexed(1)) < 200


def test_a_digest_is_read_as_it_is_written() -> None:
    assert digest_number(digest_text(255)) == 255
    assert digest_text(2**64 - 1) == "h-ffffffffffffffff"
    for wrong in ("", "h-", "h-ff", "ff", "h-00000000000000FF", "h-000000000000000g"):
        with pytest.raises(ValueError, match=r"digest|literal"):
            digest_number(wrong)
