"""The S3 client of `keyturn.s3` (SPEC 11)."""

from __future__ import annotations

import logging
import sys

import pytest

from keyturn.errors import SettingsError
from keyturn.publisher import Publisher
from keyturn.s3 import new_session, open_client
from keyturn.settings import S3Settings
from tests.unit.keyturn.publisher.test_requests import SETTINGS


def settings(**values: str) -> S3Settings:
    return S3Settings.model_validate(
        {
            "s3_bucket": "bucket",
            "s3_access_key_id": "AKID",
            "s3_secret_access_key": "s3cr3t",
            **values,
        }
    )


async def test_tuned() -> None:
    """For servers that are not AWS: no trailing checksums, paths, nothing resent."""
    private = settings(s3_endpoint_url="http://127.0.0.1:1", s3_region="eu-west-1")
    async with open_client(private, max_connections=7) as client:
        config = client.meta.config
        assert client.meta.endpoint_url == "http://127.0.0.1:1"
        assert client.meta.region_name == "eu-west-1"
        assert config.request_checksum_calculation == "when_required"  # type: ignore[attr-defined]
        assert config.response_checksum_validation == "when_required"  # type: ignore[attr-defined]
        assert config.retries["total_max_attempts"] == 1  # type: ignore[attr-defined]
        assert config.max_pool_connections == 7  # type: ignore[attr-defined]
        assert config.s3["addressing_style"] == "path"  # type: ignore[attr-defined]


async def test_retries_are_a_choice() -> None:
    """For staging, where a put may be repeated without harm."""
    async with open_client(settings(), max_connections=1, total_max_attempts=4) as client:
        assert client.meta.config.retries["total_max_attempts"] == 4  # type: ignore[attr-defined]


async def test_without_aioboto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aioboto3", None)
    monkeypatch.delitem(sys.modules, "keyturn.s3")
    with pytest.raises(SettingsError, match=r"keyturn\[staging\]"):
        async with Publisher.open(SETTINGS, s3=settings(), connect=False):
            pass


def test_loggers_of_other_libraries_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What botocore may log is for the host process to decide (`keyturn_workers` does)."""
    names = ("botocore", "aiobotocore", "boto3", "aioboto3")
    for name in names:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    new_session(settings())
    assert [logging.getLogger(name).level for name in names] == [logging.DEBUG] * 4
