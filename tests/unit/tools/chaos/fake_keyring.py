"""A bucket with one keyring, as far as boto3's client is used for it."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from keyturn.identifiers import keyring_s3_key


def _error(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code}}, "operation")


@dataclass
class FakeS3:
    """Passed as a client; `objects` are the labels and times of a project's objects."""

    body: bytes | None
    project: str = "amber"
    objects: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    put_at: datetime = datetime(2026, 11, 29, 10, tzinfo=UTC)

    def _etag(self) -> str:
        return hashlib.md5(self.body or b"", usedforsecurity=False).hexdigest()

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        assert (Bucket, Key) == ("bucket", keyring_s3_key(self.project))
        if self.body is None:
            raise _error("NoSuchKey")
        return {"Body": io.BytesIO(self.body), "ETag": f'"{self._etag()}"'}

    def put_object(
        self,
        Bucket: str,  # noqa: N803
        Key: str,  # noqa: N803
        Body: bytes,  # noqa: N803
        IfMatch: str | None = None,  # noqa: N803
    ) -> None:
        assert (Bucket, Key) == ("bucket", keyring_s3_key(self.project))
        if IfMatch is not None and (self.body is None or IfMatch != self._etag()):
            raise _error("PreconditionFailed")
        self.body = Body

    def delete_object(self, Bucket: str, Key: str) -> None:  # noqa: N803
        assert (Bucket, Key) == ("bucket", keyring_s3_key(self.project))
        self.body = None

    def head_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        del Bucket
        if Key == keyring_s3_key(self.project):
            return {"LastModified": self.put_at}
        label, at = self.objects[Key]
        metadata = {"enc-kek-user": label} if label else {}
        return {"Metadata": metadata, "LastModified": at}

    def get_paginator(self, name: str) -> FakeS3:
        assert name == "list_objects_v2"
        return self

    def paginate(self, Bucket: str, Prefix: str) -> list[dict[str, Any]]:  # noqa: N803
        del Bucket
        rows = [
            {"Key": key, "LastModified": at}
            for key, (_, at) in self.objects.items()
            if key.startswith(Prefix)
        ]
        return [{"Contents": rows}, {}]
