"""The upload handler: what it does for expired and for refused uploads (SPEC 6.3, 6.9)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyturn.errors import (
    AlreadyExistsError,
    BadSignatureError,
    BodyTooLargeError,
    CodedError,
    CorruptObjectError,
    DeletedKeyError,
    NotPermittedError,
    StagedBodyMissingError,
)
from keyturn.messages import RequestOrigin, UploadStored
from keyturn_workers.upload import UploadHandler
from tests.unit.keyturn_workers.upload.bench import (
    DATA,
    OTHER_ID,
    STAGED,
    WAYS,
    bench,
    request,
)

BY_ALL_WAYS = pytest.mark.parametrize("way", WAYS)


ORIGIN = RequestOrigin("api", "0" * 64)


@BY_ALL_WAYS
async def test_an_expired_upload_that_was_stored_is_completed(way: str) -> None:
    """A request past its age is answered from its target, and stores nothing (SPEC 6.3)."""
    on = bench(way)
    sent = request(on, way)
    role = UploadHandler(on.uploader)
    assert await role.find_completed(sent, ORIGIN) is None
    assert on.storage.calls[way] == 0
    await on.serve(sent)
    done = await role.find_completed(sent, ORIGIN)
    assert done is not None
    assert isinstance(done.event, UploadStored)
    assert (done.event.size, done.event.generation) == (len(DATA), 1)
    assert on.storage.calls[way] == 1
    assert await role.find_completed(sent, replace(ORIGIN, publisher="web")) is None


@pytest.mark.parametrize(
    ("error", "stays"),
    [
        (DeletedKeyError("k"), False),
        (BodyTooLargeError("k"), False),
        (AlreadyExistsError("k"), True),  # nothing with another upload's id is there
        (BadSignatureError("k"), True),
        (NotPermittedError("k"), True),
        (CorruptObjectError("k"), True),
        (StagedBodyMissingError("k"), True),
    ],
)
async def test_a_permanent_refusal_deletes_the_staged_body(
    error: CodedError, *, stays: bool
) -> None:
    on = bench("put_stream")
    sent = request(on, "put_stream")
    await UploadHandler(on.uploader).after_refusal(sent, ORIGIN, error)
    assert await on.exists(STAGED) is stays


async def test_a_key_taken_by_another_upload_deletes_the_staged_body() -> None:
    on = bench("put_stream")
    await on.serve(request(on, "put_stream", upload_id=OTHER_ID))
    sent = request(on, "put_stream")
    with pytest.raises(AlreadyExistsError) as refused:
        await on.serve(sent)
    await UploadHandler(on.uploader).after_refusal(sent, ORIGIN, refused.value)
    assert not await on.exists(STAGED)
