"""An upload as a value: where it goes, and how large it is (SPEC 6.4, 7)."""

from __future__ import annotations

import pytest

from keyturn.crypto import sealed_size, to_base64
from keyturn.errors import BadSealError
from keyturn.messages import InlineBody
from keyturn_workers.upload.attempt import Upload
from tests.unit.keyturn_workers.upload.bench import DATA, STAGED, TARGET, bench, request


@pytest.mark.parametrize("way", ["put", "put_stream"])
def test_the_size_is_that_of_the_plaintext(way: str) -> None:
    upload = Upload(request(bench(way), way), "api")
    assert upload.size_bytes() == len(DATA)
    assert upload.is_staged is (way == "put_stream")


def test_a_body_of_an_impossible_size_is_a_bad_seal() -> None:
    sent = request(bench())
    too_short = to_base64(bytes(sealed_size(0) - 1))
    upload = Upload(sent.model_copy(update={"body": InlineBody(inline=too_short)}), "api")
    with pytest.raises(BadSealError):
        upload.size_bytes()


def test_the_object_is_the_projects_and_the_staged_body_the_publishers() -> None:
    sent = request(bench("put_stream"), "put_stream")
    assert (Upload(sent, "api").s3_key, Upload(sent, "web").s3_key) == (TARGET, TARGET)
    assert Upload(sent, "api").staging_s3_key == STAGED
    assert Upload(sent, "web").staging_s3_key != STAGED
