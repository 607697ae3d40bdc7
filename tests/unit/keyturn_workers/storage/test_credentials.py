"""The bucket's URL and credentials: from the settings alone, or by AWS's rules (SPEC 11)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from keyturn.settings import S3Settings
from keyturn_workers.storage.aws_chain import find_bucket
from keyturn_workers.storage.s3 import _bucket_of


@pytest.mark.parametrize(
    "endpoint",
    [
        *("http://127.0.0.1:9000", "https://storage.example.com", "https://storage.example.com/"),
        *("http://storage:8000/prefix", "https://[::1]:443", "http://example.com:80"),
    ],
)
@pytest.mark.parametrize("bucket", ["keyturn", "files.of-many.example", "UPPER_case"])
async def test_the_settings_alone_give_what_botocore_gives(endpoint: str, bucket: str) -> None:
    settings = S3Settings(
        s3_endpoint_url=endpoint,
        s3_bucket=bucket,
        s3_access_key_id="AKID",
        s3_secret_access_key="secret",  # a test's
    )
    own = _bucket_of(settings)
    assert own is not None
    url, source = await find_bucket(settings, None)
    assert own[0] == url
    ours, theirs = await own[1].current(), await source.current()
    assert ours == theirs
    assert "secret" not in repr(ours)


@pytest.mark.parametrize(
    "given", [{"s3_endpoint_url": "http://127.0.0.1:9000"}, {"s3_access_key_id": "AKID"}]
)
def test_anything_else_is_for_aws_to_say(given: dict[str, str]) -> None:
    if "s3_access_key_id" in given:
        given = {**given, "s3_secret_access_key": "secret"}
    assert _bucket_of(S3Settings.model_validate({"s3_bucket": "keyturn", **given})) is None


def test_the_storage_needs_no_botocore_to_be_imported() -> None:
    code = "import keyturn_workers.storage.s3, sys; print('botocore' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
