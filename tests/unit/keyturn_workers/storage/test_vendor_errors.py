"""Errors of connections and of botocore never leave the storage."""

from __future__ import annotations

import aiohttp
import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import MissingError, StorageTlsError
from keyturn_workers.storage.s3_connections import ConnectionLostError, TlsFailedError
from keyturn_workers.storage.vendor_errors import (
    may_pass,
    translate_credential_errors,
    translate_errors,
)


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (ConnectionLostError("connection closed"), "connection closed"),
        (ConnectionResetError("?X-Amz-Signature=1"), "the connection was lost"),
        (TimeoutError(), "it did not respond in time"),
    ],
    ids=lambda value: getattr(type(value), "__name__", value),
)
def test_each_vendor_error_becomes_an_error_of_the_port(raised: Exception, text: str) -> None:
    """With the operation and the kind of failure alone."""
    caught = pytest.raises(StorageUnavailableError, match=f"read: .*{text}")
    with caught as error, translate_errors("read"):
        raise raised
    assert "Signature" not in str(error.value)
    assert error.value.__cause__ is raised


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(ValueError, match="own"), translate_errors("read"):
        raise ValueError("own")


@pytest.mark.parametrize(
    ("raised", "text"),
    [
        (ClientError({"Error": {"Code": "AccessDenied"}}, "AssumeRole"), "refuses them"),
        (aiohttp.ClientPayloadError("?X-Amz-Signature=1"), "cannot be reached"),
        (CredentialRetrievalError(provider="iam", error_msg="?X-Amz-Signature=1"), "provides none"),
    ],
    ids=["refusal", "loss", "none"],
)
def test_a_failure_of_the_credential_service_is_no_refusal_of_the_storage(
    raised: Exception, text: str
) -> None:
    """Nothing was sent to the storage: a later attempt may succeed."""
    caught = pytest.raises(StorageUnavailableError, match=f"credentials: .*{text}")
    with caught as error, translate_errors("put"), translate_credential_errors():
        raise raised
    assert "Signature" not in str(error.value)


def test_a_certificate_is_refused_once_and_a_lost_connection_is_tried_again() -> None:
    with (
        pytest.raises(StorageTlsError, match="list: its certificate has expired"),
        translate_errors("list"),
    ):
        raise TlsFailedError("its certificate has expired")
    assert not may_pass(StorageTlsError("list: its certificate has expired"))
    assert may_pass(StorageUnavailableError("list: connection closed"))
    assert not may_pass(MissingError("list: NoSuchKey"))
