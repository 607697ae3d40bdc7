"""Errors of a storage that does not answer name its endpoint."""

from __future__ import annotations

import pytest

from keyturn.errors import AlreadyExistsError, StorageUnavailableError
from keyturn.settings import S3Settings
from keyturn_workers.cli.bucket import naming_storage


def test_other_errors_keep_their_text() -> None:
    settings = S3Settings(s3_bucket="files")
    with pytest.raises(AlreadyExistsError, match=r"^already_exists: k$"), naming_storage(settings):
        raise AlreadyExistsError("k")
    group = ExceptionGroup("g", [AlreadyExistsError("k")])
    with pytest.raises(ExceptionGroup) as raised, naming_storage(settings):
        raise group
    assert raised.value is group


def test_an_error_in_a_group_gets_the_endpoint_too() -> None:
    failed = ExceptionGroup("g", [ExceptionGroup("h", [StorageUnavailableError("head: Timeout")])])
    with (
        pytest.raises(StorageUnavailableError, match=r"head: Timeout \(the storage at AWS, region"),
        naming_storage(S3Settings(s3_bucket="files")),
    ):
        raise failed
