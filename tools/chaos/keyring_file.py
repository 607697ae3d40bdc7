"""A project's keyring as a bucket writer handles it: as bytes, with boto3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from keyturn.identifiers import keyring_s3_key

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from tools.harness.tenants import Tenant

_CHANGED = frozenset({"PreconditionFailed", "NoSuchKey", "404", "412"})


@dataclass(frozen=True)
class KeyringFile:
    """The object that holds a project's keyring."""

    client: S3Client
    bucket: str
    s3_key: str

    @classmethod
    def of(cls, tenant: Tenant) -> KeyringFile:
        """The keyring of a project."""
        return cls(tenant.client, tenant.deployment.bucket, keyring_s3_key(tenant.project))

    def read(self) -> tuple[bytes, str]:
        """The record's bytes, and its ETag."""
        answer = self.client.get_object(Bucket=self.bucket, Key=self.s3_key)
        # Ceph compares with the ETag without its quotes.
        return answer["Body"].read(), answer["ETag"].strip('"')

    def replace(self, body: bytes, etag: str) -> bool:
        """Put a record in the place of the one with this ETag; False if another one is there."""
        try:
            self.client.put_object(Bucket=self.bucket, Key=self.s3_key, Body=body, IfMatch=etag)
        except ClientError as exc:
            if exc.response["Error"]["Code"] in _CHANGED:
                return False
            raise
        return True

    def put(self, body: bytes) -> None:
        """Put a record, whatever is there."""
        self.client.put_object(Bucket=self.bucket, Key=self.s3_key, Body=body)

    def remove(self) -> None:
        """Delete it."""
        self.client.delete_object(Bucket=self.bucket, Key=self.s3_key)

    def find(self) -> bytes | None:
        """The record's bytes; None if there is none."""
        try:
            return self.read()[0]
        except ClientError as exc:
            if exc.response["Error"]["Code"] in _CHANGED:
                return None
            raise
