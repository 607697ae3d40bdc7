"""A deployment's bucket, accessed with boto3 and the specified formats only.

Objects are built by hand, so that a test can break any part of one. Wraps are tried with one named
key at one named generation, regardless of their labels (SPEC 4, 5.1, 8.6). Nothing here uses the
workers' code.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from keyturn.crypto import (
    BODY_CONTEXT,
    SealError,
    Secret,
    admin_kek,
    kek_id,
    open_record,
    open_sealed,
    open_tombstone,
    record_kek,
    seal,
    seal_record,
    to_base64,
    unwrap_dek,
    user_kek,
    wrap_dek,
)
from keyturn.identifiers import keyring_s3_key, object_s3_key
from tools.harness import stored_objects

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from keyturn.crypto import Role
    from tools.harness.deployment import Deployment

COBBLESTONE = "Cobblestone-256"


@dataclass
class HandmadeObject:
    """An object built by hand; every part can be changed before it is put."""

    key: str
    plaintext: bytes
    body: bytes
    metadata: dict[str, str]
    dek: bytes = field(repr=False)


@dataclass(frozen=True)
class Bucket:
    """The bucket of a deployment."""

    deployment: Deployment

    @cached_property
    def client(self) -> S3Client:
        """One S3 client, created on first use."""
        return stored_objects.s3_client(self.deployment)

    # Raw access.

    def put(self, s3_key: str, body: bytes, metadata: dict[str, str], **more: Any) -> None:
        """Put any object at this S3 key; `more` are arguments of boto3's `put_object`."""
        self.client.put_object(
            Bucket=self.deployment.bucket, Key=s3_key, Body=body, Metadata=metadata, **more
        )

    def get(self, s3_key: str, **more: Any) -> tuple[bytes, dict[str, Any]]:
        """The body and the rest of the response; `more` as in `put`."""
        answer = self.client.get_object(Bucket=self.deployment.bucket, Key=s3_key, **more)
        return answer["Body"].read(), dict(answer)

    def head(self, s3_key: str) -> dict[str, Any]:
        """The HEAD response, without the metadata of the request itself."""
        answer = self.client.head_object(Bucket=self.deployment.bucket, Key=s3_key)
        return {name: value for name, value in answer.items() if name != "ResponseMetadata"}

    def delete(self, s3_key: str) -> None:
        self.client.delete_object(Bucket=self.deployment.bucket, Key=s3_key)

    def keys(self, prefix: str = "") -> list[str]:
        """All S3 keys under a prefix."""
        pages = self.client.get_paginator("list_objects_v2")
        found = pages.paginate(Bucket=self.deployment.bucket, Prefix=prefix)
        return [row["Key"] for page in found for row in page.get("Contents", [])]

    def heads(self, prefix: str) -> dict[str, dict[str, Any]]:
        """The HEAD responses under a prefix, to check that nothing was written."""
        return {key: self.head(key) for key in self.keys(prefix)}

    # Objects.

    def made(
        self,
        project: str,
        key: str,
        plaintext: bytes = b"hello",
        *,
        generation: int = 1,
        api_key: str | None = None,
        master_key: tuple[str, bytes] | None = None,
    ) -> HandmadeObject:
        """An object as a worker would store it at this generation."""
        dek = os.urandom(32)
        name, secret = master_key or ("m1", self.deployment.master_key)
        user = user_kek(api_key or self.deployment.api_key, project, self.deployment.pepper)
        metadata = {
            "enc-algo": COBBLESTONE,
            "enc-dek-user": self.wrap(user, "user", project, key, generation, dek),
            "enc-dek-admin": self.wrap(
                admin_kek(secret, project), "admin", project, key, generation, dek
            ),
            "enc-kek-user": f"{generation}:{kek_id(user)}",
            "enc-kek-admin": name,
        }
        return HandmadeObject(key, plaintext, seal(dek, BODY_CONTEXT, plaintext), metadata, dek)

    def wrap(
        self,
        kek: Secret,
        role: Role,
        project: str,
        key: str,
        generation: int,
        dek: bytes,
        algorithm: str = COBBLESTONE,
    ) -> str:
        """A wrap as it is stored in metadata."""
        sealed = wrap_dek(
            kek,
            role,
            algorithm=algorithm,
            project=project,
            object_key=key,
            generation=generation,
            dek=dek,
        )
        return to_base64(sealed)

    def put_made(self, project: str, made: HandmadeObject, **more: Any) -> None:
        """Put a handmade object; `more` as in `put`."""
        caller_metadata = more.pop("Metadata", {})
        self.put(
            object_s3_key(project, made.key),
            made.body,
            {**caller_metadata, **made.metadata},
            **more,
        )

    def unwrapped(self, kek: Secret, role: Role, s3_key: str, generation: int) -> bytes | None:
        """The DEK of one wrap under this KEK and generation, or None; labels are ignored."""
        project, _, key = s3_key.partition("/")
        metadata = self.head(s3_key)["Metadata"]
        return unwrap_data_key(metadata, kek, role, project, key, generation)

    def opened(self, s3_key: str, kek: Secret, role: Role, generation: int) -> bytes:
        """The plaintext, opened with one wrap only.

        Raises:
            SealError: the wrap does not open, or the body does not open with its DEK.
        """
        project, _, key = s3_key.partition("/")
        body, answer = self.get(s3_key)
        dek = unwrap_data_key(answer["Metadata"], kek, role, project, key, generation)
        if dek is None:
            raise SealError
        return open_sealed(dek, BODY_CONTEXT, body)

    def deleted_at(self, s3_key: str, master_key: bytes) -> str:
        """The deletion time in a tombstone, opened with this master key; checks its form.

        Raises:
            SealError: it does not open.
        """
        project, _, key = s3_key.partition("/")
        body, answer = self.get(s3_key)
        metadata = answer["Metadata"]
        assert (body, metadata.keys()) == (b"", {"enc-algo", "enc-dek-admin"})
        assert metadata["enc-algo"] == "deleted"
        sealed = base64.b64decode(metadata["enc-dek-admin"], validate=True)
        return open_tombstone(admin_kek(master_key, project), project, key, sealed)

    # Records.

    def record(
        self, s3_key: str, project: str, master_key: tuple[str, bytes] | None = None
    ) -> dict[str, Any]:
        """A record's content; it must be sealed with this master key."""
        name, secret = master_key or ("m1", self.deployment.master_key)
        outer = json.loads(self.get(s3_key)[0])
        assert (outer["project"], outer["master_key"]) == (project, name)
        # 2: with customer keys, which other records lack.
        assert outer["v"] in {1, 2}
        sealed = base64.b64decode(outer["sealed"], validate=True)
        inner = json.loads(open_record(record_kek(secret, project), s3_key, sealed))
        assert isinstance(inner, dict)
        return inner

    def put_record(
        self,
        s3_key: str,
        project: str,
        holds: dict[str, Any],
        master_key: tuple[str, bytes] | None = None,
    ) -> None:
        """Put a handmade record."""
        name, secret = master_key or ("m1", self.deployment.master_key)
        sealed = seal_record(record_kek(secret, project), s3_key, json.dumps(holds).encode())
        outer = {"v": 1, "project": project, "master_key": name, "sealed": to_base64(sealed)}
        self.put(s3_key, json.dumps(outer).encode(), {}, ContentType="application/json")

    def put_keyring(
        self,
        project: str,
        *api_keys: str,
        master_key: tuple[str, bytes] | None = None,
        **more: Any,
    ) -> None:
        """Put a handmade keyring: one generation per API key, the last one current.

        The default is the deployment's API key; `more` are further fields of the record.
        """
        entries = []
        for generation, api_key in enumerate(api_keys or (self.deployment.api_key,), start=1):
            kek = user_kek(api_key, project, self.deployment.pepper)
            entries.append(
                {
                    "generation": generation,
                    "kek_id": kek_id(kek),
                    "kek": to_base64(kek.reveal()),
                    "rotation_id": str(uuid.uuid4()),
                    "requested_at": "2026-11-24T10:00:00.000000Z",
                    "at": "2026-11-24T10:00:01.000000Z",
                }
            )
        rest = {"plaintext": "forbidden", "lease_s": 2}
        origin = {"publisher": "api", "request": "0" * 64}
        holds = {**entries.pop(), **rest, **origin, "history": entries, **more}
        self.put_record(keyring_s3_key(project), project, holds, master_key)

    def keyring(self, project: str, master_key: tuple[str, bytes] | None = None) -> dict[str, Any]:
        """A project's keyring."""
        return self.record(keyring_s3_key(project), project, master_key)


def unwrap_data_key(
    metadata: dict[str, str], kek: Secret, role: Role, project: str, key: str, generation: int
) -> bytes | None:
    """The DEK of one wrap in metadata, or None; labels are ignored."""
    try:
        return unwrap_dek(
            kek,
            role,
            algorithm=metadata["enc-algo"],
            project=project,
            object_key=key,
            generation=generation,
            wrap=base64.b64decode(metadata[f"enc-dek-{role}"], validate=True),
        )
    except SealError:
        return None
