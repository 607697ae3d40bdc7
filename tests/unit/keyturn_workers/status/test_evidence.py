"""Evidence comes with its envelope where it verifies, and with a code where not (SPEC 15.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import SigningKey
from keyturn.errors import StorageUnavailableError
from keyturn.evidence import digest, parse, sign
from keyturn.identifiers import evidence_s3_key
from keyturn_workers.errors import ArchivedError
from tests.unit.keyturn.evidence.shared import statement
from tests.unit.keyturn_workers.status.bucket import DEPLOYMENT, EVENT_KEY, Bucket, sweep_id

if TYPE_CHECKING:
    from keyturn.messages import EvidenceStatus

_OTHER_KEY: Final = SigningKey.from_seed(bytes([9]) * 32)


def _envelope(
    number: int, key: SigningKey = EVENT_KEY, *, deployment: str = DEPLOYMENT, **more: Any
) -> bytes:
    fields: dict[str, Any] = {"sweep_id": sweep_id(number), "generation": number} | more
    return sign(statement(deployment=deployment, **fields), key)


def _put(bucket: Bucket, number: int, envelope: bytes) -> None:
    bucket.plant(evidence_s3_key("acme", number, sweep_id(number)), {}, envelope)


async def _rows(bucket: Bucket, **more: Any) -> list[EvidenceStatus]:
    page = await bucket.report("evidence", "acme", **more)
    assert page.code is None
    return list(page.evidence_files or ())


async def test_evidence_comes_as_stored_with_its_digest_and_its_time() -> None:
    bucket, envelope = Bucket(), _envelope(2)
    _put(bucket, 2, envelope)
    (row,) = await _rows(bucket)
    assert (row.envelope, row.digest, row.code) == (envelope.decode(), digest(envelope), None)
    assert (row.generation, row.sweep_id) == (2, sweep_id(2))
    assert row.at == parse(envelope).predicate.proven_to


@pytest.mark.parametrize(
    ("envelope", "code"),
    [
        (b"junk", "malformed"),
        (_envelope(2, _OTHER_KEY), "unknown_key"),
        (_envelope(2, deployment="elsewhere"), "foreign"),
        (_envelope(3), "malformed"),  # a genuine file at the path of another one
        (_envelope(2).replace(b'"sig":"', b'"sig":"AAAA'), "forged"),
    ],
    ids=["junk", "unknown key", "foreign", "moved", "damaged"],
)
async def test_what_does_not_verify_is_a_row_without_its_content(
    envelope: bytes, code: str
) -> None:
    bucket = Bucket()
    _put(bucket, 2, envelope)
    (row,) = await _rows(bucket)
    assert (row.code, row.envelope, row.digest) == (code, None, digest(envelope))
    assert (row.generation, row.sweep_id) == (2, sweep_id(2))


async def test_an_archived_file_is_a_row_and_a_lost_one_or_a_foreign_name_none() -> None:
    bucket = Bucket()
    _put(bucket, 2, _envelope(2))
    bucket.plant(".keyturn/evidence/acme/notes.txt", {}, b"x")
    bucket.storage.fail_next("read", ArchivedError("InvalidObjectState"))
    assert [row.code for row in await _rows(bucket)] == ["archived_object"]

    async def remove() -> None:
        await bucket.storage.delete(evidence_s3_key("acme", 2, sweep_id(2)))

    bucket.storage.before_next("read", remove)
    assert await _rows(bucket) == []


async def test_a_page_reads_only_its_own_files() -> None:
    bucket = Bucket()
    for number in range(1, 21):
        _put(bucket, number, _envelope(number))
    reads = bucket.storage.calls["read"]
    pages = [await bucket.report("evidence", "acme", page=page, limit=7) for page in (1, 2, 3)]
    assert [len(page.evidence_files or ()) for page in pages] == [7, 7, 6]
    assert {page.total for page in pages} == {20}
    assert bucket.storage.calls["read"] == reads + 20
    rows = [row for page in pages for row in page.evidence_files or ()]
    assert sorted(row.generation for row in rows) == list(range(1, 21))


async def test_an_outage_of_the_storage_is_a_code() -> None:
    bucket = Bucket()
    _put(bucket, 2, _envelope(2))
    bucket.storage.fail_next("read", StorageUnavailableError("no answer"))
    assert (await bucket.report("evidence", "acme")).code == "storage_unavailable"
