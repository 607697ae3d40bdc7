"""Projects under rotation: their keys by generation, the expected objects, and their records.

Every check reads with boto3 and the specified formats only (`tools.harness.stored_objects`).
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from keyturn.crypto import (
    BODY_CONTEXT,
    admin_kek,
    kek_id,
    new_api_key,
    open_sealed,
    record_kek,
    user_kek,
)
from keyturn.evidence import Evidence, in_chain_order, verify_chain
from keyturn.identifiers import (
    ALL_PROJECTS,
    SWEEPS_PREFIX,
    evidence_prefix,
    keyring_s3_key,
    object_s3_key,
)
from tools.harness import requests as rq
from tools.harness import stored_objects
from tools.harness.bucket import Bucket, unwrap_data_key
from tools.harness.canaries import MARKER

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mypy_boto3_s3 import S3Client

    from keyturn.crypto import Kek, Role
    from tools.harness.deployment import Deployment
    from tools.harness.stored_objects import StoredObject

_THREADS = 8
_CALLERS = {"author": "kim", "note": "=?utf-8?q?=C3=BC?="}


@dataclass(frozen=True)
class Put:
    """An object as it was put: what every rotation must preserve."""

    plaintext_sha256: str
    body_sha256: str
    etag: str
    callers: dict[str, str] = field(default_factory=dict)
    content_type: str = "binary/octet-stream"
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Tenant:
    """A project of a deployment; `api_keys[0]` belongs to generation 1.

    `masters` are the master keys by id, oldest first: only the last one must open objects.
    """

    deployment: Deployment
    project: str
    api_keys: list[str] = field(default_factory=list, repr=False)
    masters: dict[str, bytes] = field(default_factory=dict, repr=False)
    objects: dict[str, Put] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.api_keys = self.api_keys or [self.deployment.api_key]
        self.masters = self.masters or {"m1": self.deployment.master_key}
        self.bucket = Bucket(self.deployment)

    @property
    def client(self) -> S3Client:
        """A plain S3 client."""
        return self.bucket.client

    # Requests.

    def rotation(self, **more: Any) -> dict[str, Any]:
        """A request to rotate to a new API key, which becomes the project's expected key."""
        self.api_keys.append(new_api_key())
        return rq.rotation(self.deployment, self.project, self.api_keys[-1], **more)

    def delete(self, key: str) -> dict[str, Any]:
        """A request to delete an object."""
        return rq.delete(self.project, key)

    # Objects.

    def put(self, key: str, plaintext: bytes, *, tags: dict[str, str] | None = None) -> None:
        """Put a sealed object of generation 1 by hand, as an upload would."""
        master_key = next(iter(self.masters.items()))
        made = self.bucket.made(
            self.project, key, plaintext, api_key=self.api_keys[0], master_key=master_key
        )
        self.bucket.put_made(
            self.project,
            made,
            ContentType="text/x-canary",
            Tagging="&".join(f"{name}={value}" for name, value in (tags or {}).items()),
            Metadata={**_CALLERS, "enc-upload": rq.new_id()},
        )
        self.objects[key] = Put(
            stored_objects.sha256(plaintext),
            stored_objects.sha256(made.body),
            self.bucket.head(object_s3_key(self.project, key))["ETag"],
            _CALLERS,
            "text/x-canary",
            tags or {},
        )

    def put_all(self, plaintexts: dict[str, bytes], *, tags: dict[str, str] | None = None) -> None:
        """Put many objects, in threads."""
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(lambda item: self.put(*item, tags=tags), plaintexts.items()))

    def remember(self, plaintexts: dict[str, bytes]) -> None:
        """Record the present state of uploaded objects as what must be preserved."""
        for key, shown, etag in self._shown(plaintexts):
            self.objects[key] = Put(
                stored_objects.sha256(plaintexts[key]),
                stored_objects.sha256(shown.body),
                etag,
                _callers(shown),
                shown.content_type,
            )

    def generations(self) -> list[int]:
        """The generations in all objects' labels, in the order of keys."""
        heads = [
            self.client.head_object(Bucket=self.deployment.bucket, Key=key)["Metadata"]
            for key in stored_objects.list_keys(self.deployment, f"{self.project}/")
        ]
        return [int(head["enc-kek-user"].split(":")[0]) for head in heads if "enc-kek-user" in head]

    def _shown(self, keys: Iterable[str]) -> list[tuple[str, StoredObject, str]]:
        def one(key: str) -> tuple[str, StoredObject, str]:
            answer = self.client.get_object(
                Bucket=self.deployment.bucket, Key=object_s3_key(self.project, key)
            )
            shown = stored_objects.StoredObject(
                answer["Body"].read(), answer["Metadata"], answer["ContentType"]
            )
            return key, shown, answer["ETag"]

        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(one, keys))

    # Checks.

    def check(self, *, generation: int, deleted: frozenset[str] = frozenset()) -> None:
        """Every object opens with both current keys and no older one, else it is unchanged."""
        standing = stored_objects.list_keys(self.deployment, f"{self.project}/")
        assert set(standing) == {object_s3_key(self.project, k) for k in {*self.objects, *deleted}}
        assert len(self.api_keys) == generation
        for key, shown, etag in self._shown(self.objects):
            self._check_opens(key, shown)
            self._check_old_keys_open_nothing(key, shown)
            self._check_unchanged(key, shown, etag)

    def _check_opens(self, key: str, shown: StoredObject) -> None:
        label = f"{len(self.api_keys)}:{kek_id(self._user_kek(len(self.api_keys)))}"
        assert shown.metadata["enc-kek-user"] == label, key
        assert shown.metadata["enc-kek-admin"] == list(self.masters)[-1], key
        now = replace(self.deployment, master_key=self._master, api_key=self.api_keys[-1])
        for by in ("user", "admin"):
            dek = stored_objects._data_key(now, self.project, key, by, shown, None)
            opened = open_sealed(dek, BODY_CONTEXT, shown.body)
            assert stored_objects.sha256(opened) == self.objects[key].plaintext_sha256, (key, by)

    def _check_old_keys_open_nothing(self, key: str, shown: StoredObject) -> None:
        old = [self._user_kek(number) for number in range(1, len(self.api_keys))]
        old += [self._admin_kek(name) for name in list(self.masters)[:-1]]
        roles: tuple[Role, ...] = ("user", "admin")
        for role, kek, generation in product(roles, old, range(1, len(self.api_keys) + 1)):
            dek = unwrap_data_key(shown.metadata, kek, role, self.project, key, generation)
            assert dek is None, (key, role)

    def _check_unchanged(self, key: str, shown: StoredObject, etag: str) -> None:
        put = self.objects[key]
        now = Put(
            put.plaintext_sha256,
            stored_objects.sha256(shown.body),
            etag,
            _callers(shown),
            shown.content_type,
            self._tags(key) if put.tags else {},
        )
        assert now == put, key

    def _tags(self, key: str) -> dict[str, str]:
        answer = self.client.get_object_tagging(
            Bucket=self.deployment.bucket, Key=object_s3_key(self.project, key)
        )
        return {tag["Key"]: tag["Value"] for tag in answer["TagSet"]}

    def check_deleted(self, key: str) -> None:
        """The key has an empty tombstone, which the master key opens."""
        self.bucket.deleted_at(object_s3_key(self.project, key), self._master)

    # Records.

    def keyring(self) -> dict[str, Any]:
        """The content of the project's keyring, and its `master_key`."""
        record = self._record(keyring_s3_key(self.project), self.project)
        assert record is not None, "no keyring"
        return record

    def record(self) -> dict[str, Any]:
        """The record of the project's sweeps; empty if there is none."""
        return self._record(f"{SWEEPS_PREFIX}{self.project}.json", self.project) or {}

    def origin(self, request_id: str) -> dict[str, Any]:
        """A rotation or a sweep in the project's record; empty if the record lacks it."""
        return find_origin(self.record(), request_id)

    def record_of_all(self) -> dict[str, Any]:
        """The record of the sweeps of all projects; empty if there is none."""
        return self._record(f"{SWEEPS_PREFIX}{ALL_PROJECTS}.json", ALL_PROJECTS) or {}

    def _record(self, key: str, project: str) -> dict[str, Any] | None:
        if key not in stored_objects.list_keys(self.deployment, key):
            return None
        name = json.loads(self.bucket.get(key)[0])["master_key"]
        content = self.bucket.record(key, project, (name, self.masters[name]))
        return {**content, "master_key": name}

    def evidence(self) -> list[bytes]:
        """The project's files of evidence, in the order of their chain."""
        names = stored_objects.list_keys(self.deployment, evidence_prefix(self.project))
        answers = [
            self.client.get_object(Bucket=self.deployment.bucket, Key=name) for name in names
        ]
        return in_chain_order(answer["Body"].read() for answer in answers)

    def check_evidence(self) -> tuple[Evidence, ...]:
        """The chain of evidence is whole, and ends with what the keyring names, if anything."""
        files, newest = self.evidence(), self.keyring().get("evidence")
        if newest is None:
            assert files == []
            return ()
        keys = [self.deployment.event_key.verify_key()]
        return verify_chain(files, keys, project=self.project, newest=newest)

    def left(self) -> list[str]:
        """Records of pages, which should be deleted once all sweeps have ended."""
        keys = stored_objects.list_keys(self.deployment, f"{SWEEPS_PREFIX}{self.project}/")
        return [key for key in keys if "/results/" in key or "/tags/" in key]

    @property
    def _master(self) -> bytes:
        return list(self.masters.values())[-1]

    def _user_kek(self, generation: int) -> Kek:
        return user_kek(self.api_keys[generation - 1], self.project)

    def _admin_kek(self, name: str) -> Kek:
        return admin_kek(self.masters[name], self.project)

    def secrets(self) -> dict[str, bytes]:
        """All secrets of this project that no log may show."""
        found = {"plaintext": MARKER}
        for number, api_key in enumerate(self.api_keys, 1):
            found[f"API key {number} of {self.project}"] = api_key.encode()
            found[f"user KEK {number} of {self.project}"] = self._user_kek(number).reveal()
        for name, master in self.masters.items():
            found[f"master key {name}"] = master
            found[f"admin KEK {name} of {self.project}"] = self._admin_kek(name).reveal()
            found[f"record KEK {name} of {self.project}"] = record_kek(
                master, self.project
            ).reveal()
        for key in list(self.objects)[:20]:
            now = replace(self.deployment, master_key=self._master)
            found[f"DEK of {key}"] = stored_objects.data_key(now, self.project, key)
        return found


def find_origin(record: dict[str, Any], request_id: str) -> dict[str, Any]:
    """A rotation or a sweep in a record; empty if the record lacks it."""
    origins: list[dict[str, Any]] = record.get("origins", [])
    return next((each for each in origins if each["id"] == request_id), {})


def _callers(shown: StoredObject) -> dict[str, str]:
    return {name: value for name, value in shown.metadata.items() if not name.startswith("enc-")}
