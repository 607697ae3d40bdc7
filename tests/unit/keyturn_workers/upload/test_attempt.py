"""One attempt to store an object: encrypted or not, under its own DEK (SPEC 4.3, 7.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, commits_to, seal, upload_tag
from keyturn.errors import StorageUnavailableError
from keyturn.metadata import Wraps, parse
from keyturn.metadata import upload_tag as tag_of
from keyturn_workers.objects.wraps import verify_upload
from keyturn_workers.storage import IfAbsent, IfMatch
from keyturn_workers.upload import UploadResult
from keyturn_workers.upload.attempt import Attempt, Upload
from tests.unit.keyturn_workers.factories import ADMIN_KEKS, keyring
from tests.unit.keyturn_workers.upload.bench import DATA, TARGET, UPLOAD_ID, bench, request

if TYPE_CHECKING:
    from typing import Any

    from keyturn_workers.storage import Condition
    from tests.unit.keyturn_workers.upload.bench import Bench


async def _begin(on: Bench, condition: Condition | None = None, **changed: Any) -> Attempt:
    upload = Upload(request(on).model_copy(update=changed), "api")
    snapshot = await on.keyrings.read_fresh("acme")
    return Attempt.begin(on.context, upload, b"t" * 32, condition or IfAbsent(), snapshot)


@pytest.mark.parametrize(
    ("encryption_enabled", "plaintext_allowed", "condition", "is_encrypted"),
    [
        (True, True, IfAbsent(), True),
        (True, False, IfAbsent(), True),
        (False, False, IfAbsent(), True),
        (False, True, IfAbsent(), False),
        # Over the upload's own plaintext, which is forbidden by now.
        (False, True, IfMatch("etag"), True),
    ],
)
async def test_an_object_is_plaintext_only_if_settings_and_keyring_allow_it(
    *, encryption_enabled: bool, plaintext_allowed: bool, condition: Condition, is_encrypted: bool
) -> None:
    ring = keyring(plaintext=plaintext_allowed)
    on = bench(ring=ring, encryption_enabled=encryption_enabled)
    assert (await _begin(on, condition)).is_encrypted is is_encrypted


async def test_an_encrypted_objects_metadata_opens_and_has_the_uploads_tag() -> None:
    on = bench()
    attempt = await _begin(on, metadata={"author": "kim"})
    metadata = attempt.headers(5).metadata
    wraps = parse(metadata)
    assert isinstance(wraps, Wraps)
    header = seal(attempt.dek, BODY_CONTEXT, b"hello")[:HEADER_BYTES]
    verified = verify_upload(wraps, header, "k", on.ring, ADMIN_KEKS)
    assert (verified.dek, verified.current) == (attempt.dek, True)
    assert metadata["author"] == "kim"
    assert metadata["enc-upload"] == UPLOAD_ID
    assert tag_of(metadata) == upload_tag(
        attempt.dek,
        publisher="api",
        project="acme",
        object_key="k",
        upload_id=UPLOAD_ID,
        size_bytes=5,
    )


async def test_plaintext_has_the_callers_metadata_and_the_uploads_id_alone() -> None:
    on = bench(ring=keyring(plaintext=True), encryption_enabled=False)
    attempt = await _begin(on, metadata={"author": "kim"})
    assert attempt.headers(5).metadata == {"author": "kim", "enc-upload": UPLOAD_ID}


@pytest.mark.parametrize(
    ("content_type", "stored"), [("text/plain", "text/plain"), ("  ", None), (None, None)]
)
async def test_a_blank_content_type_is_none(content_type: str | None, stored: str | None) -> None:
    attempt = await _begin(bench(), content_type=content_type)
    assert attempt.headers(5).content_type == stored


async def test_an_attempt_prints_no_key() -> None:
    attempt = await _begin(bench())
    assert repr(attempt.dek) not in repr(attempt)
    assert repr(attempt.transport_key) not in repr(attempt)
    assert repr(replace(attempt, dek=b"")) == repr(attempt)


async def test_each_attempt_has_its_own_dek() -> None:
    """A lost put and the next one share no key: headers and DEKs differ."""
    on = bench()
    sent = request(on)
    on.storage.fail_next("put", StorageUnavailableError("lost"), after_effect=True)
    with pytest.raises(StorageUnavailableError):
        await on.serve(sent)
    _, first = await on.storage.read(TARGET)
    await on.storage.delete(TARGET)
    await on.serve(sent)
    head, second = await on.storage.read(TARGET)
    wraps = parse(head.metadata)
    assert isinstance(wraps, Wraps)
    dek = verify_upload(wraps, second[:HEADER_BYTES], "k", on.ring, ADMIN_KEKS).dek
    assert commits_to(dek, BODY_CONTEXT, second[:HEADER_BYTES])
    assert not commits_to(dek, BODY_CONTEXT, first[:HEADER_BYTES])


async def test_plaintext_is_stored_if_encryption_is_off() -> None:
    on = bench(ring=keyring(plaintext=True), encryption_enabled=False)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 1)
    assert (await on.storage.read(TARGET))[1] == DATA
    assert await on.metadata() == {"enc-upload": UPLOAD_ID}
