"""The address and credentials of an S3 server, and fresh buckets on it.

Storage for tests, demo and bench (SPEC 10, 11). No repr shows the secret key.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, cast

import botocore.session
from botocore.config import Config

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mypy_boto3_s3.client import S3Client

_REGION = "us-east-1"


@dataclass(frozen=True)
class S3Server:
    """An S3 server's address and credentials; `kind` is `ceph`, `moto` or `given`, among others.

    `tls_endpoint_url` is its address for TLS, if it has one, and `ca` the authority of that.
    """

    endpoint_url: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    region: str
    kind: str
    tls_endpoint_url: str = ""
    ca: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> S3Server | None:
        """The server that `KEYTURN_S3_…` (SPEC 11) names, or None without an endpoint."""
        endpoint_url = environ.get("KEYTURN_S3_ENDPOINT_URL")
        if not endpoint_url:
            return None
        return cls(
            endpoint_url=endpoint_url,
            access_key_id=environ.get("KEYTURN_S3_ACCESS_KEY_ID", ""),
            secret_access_key=environ.get("KEYTURN_S3_SECRET_ACCESS_KEY", ""),
            region=environ.get("KEYTURN_S3_REGION", _REGION),
            kind="given",
        )

    @classmethod
    def private(cls, port: int, kind: str) -> S3Server:
        """A server on loopback with fresh random credentials."""
        return cls(
            endpoint_url=f"http://127.0.0.1:{port}",
            access_key_id=f"KT{secrets.token_hex(9).upper()}",
            secret_access_key=secrets.token_hex(20),
            region=_REGION,
            kind=kind,
        )

    def environment(self, bucket: str) -> dict[str, str]:
        """The settings of SPEC 11 for this server and bucket."""
        found = {
            "KEYTURN_S3_ENDPOINT_URL": self.endpoint_url,
            "KEYTURN_S3_ACCESS_KEY_ID": self.access_key_id,
            "KEYTURN_S3_SECRET_ACCESS_KEY": self.secret_access_key,
            "KEYTURN_S3_REGION": self.region,
            "KEYTURN_S3_BUCKET": bucket,
        }
        return {name: value for name, value in found.items() if value}


# Shared, since each session reads AWS's service descriptions, which takes most of a second.
_session = botocore.session.Session()
_session_lock = Lock()


def sync_client(server: S3Server) -> S3Client:
    """A plain botocore client, for setup and inspection."""
    with _session_lock:
        client = _session.create_client(
            "s3",
            endpoint_url=server.endpoint_url,
            region_name=server.region,
            # Empty means the standard AWS credential chain.
            aws_access_key_id=server.access_key_id or None,
            aws_secret_access_key=server.secret_access_key or None,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                connect_timeout=5,
                read_timeout=60,
            ),
        )
    return cast("S3Client", client)


def new_bucket(server: S3Server, *, versioned: bool = False) -> str:
    """Create an empty bucket with a random name, and return the name.

    Args:
        server: Where to create it.
        versioned: Whether it keeps old versions.
    """
    name = f"keyturn-{secrets.token_hex(8)}"
    client = sync_client(server)
    try:
        if server.region == _REGION:
            client.create_bucket(Bucket=name)
        else:
            # The type lists AWS's regions; a private server may have any other.
            where = {"LocationConstraint": server.region}
            client.create_bucket(Bucket=name, CreateBucketConfiguration=where)  # type: ignore[arg-type]
        if versioned:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    finally:
        client.close()
    return name
