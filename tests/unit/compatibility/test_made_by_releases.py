"""A bucket and messages of each release from 1.0.0rc1 on are read (SPEC 4, 5, 6, 8.5, 15)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import pytest

from keyturn import messages, topology
from keyturn.crypto import (
    IntakeKey,
    Secret,
    SigningKey,
    admin_kek,
    from_base64,
    kek_info,
    open_sealed,
    transport_context,
    upload_info,
    user_kek,
)
from keyturn.errors import NotFoundError, NoUsableWrapError
from keyturn.evidence import in_chain_order, verify_chain
from keyturn.identifiers import EVIDENCE_PREFIX, keyring_s3_key
from keyturn.metadata import decode_caller_metadata
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_record import ProjectRecord
from keyturn_workers.keys.keyring.marks import Finding, Mark, compare
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.offline.download import OperatorAccess, open_object
from keyturn_workers.offline.verify.object_check import VerificationKeys
from keyturn_workers.offline.verify.project_check import check_project
from keyturn_workers.offline.verify.report import VerifyReport
from keyturn_workers.pipeline.upload.sessions import OpenedSessions
from tests.unit.compatibility.released import RELEASES, Released
from tools.harness.api_key_reader import read_with_api_key
from tools.harness.local_keys import operator_keys, parse_keyring
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

    from keyturn_workers.core.keyring import Keyring

_DEPLOYMENT: Final = "test"


@pytest.fixture(params=RELEASES)
def made(request: pytest.FixtureRequest) -> Released:
    return Released(request.param)


@pytest.fixture
def bucket(made: Released) -> MemoryStorage:
    storage = MemoryStorage()
    for s3_key, body in made.bodies().items():
        stored = made.document["objects"][s3_key]
        storage.plant(s3_key, body, Headers(stored["metadata"], stored["content_type"]))
    return storage


def _master_keys(made: Released) -> dict[str, Secret]:
    return {"m1": Secret(made.seeds()["master_key"])}


def _operator(made: Released) -> OperatorAccess:
    return OperatorAccess("acme", operator_keys(_master_keys(made)))


def _keyring(made: Released) -> Keyring:
    return parse_keyring(made.bodies()[keyring_s3_key("acme")], "acme", _master_keys(made))


async def _read(storage: MemoryStorage, access: OperatorAccess, key: str) -> str:
    async with open_object(storage, key, access) as opened:
        metadata = decode_caller_metadata(opened.head.metadata)
        assert metadata["author"] == "Jürgen"
        assert opened.head.headers.content_type == "text/plain"
        return b"".join([piece async for piece in opened.chunks()]).decode()


async def _read_with(api_key: str, storage: MemoryStorage, key: str) -> str:
    pieces = read_with_api_key(storage, "acme", key, api_key)
    return b"".join([piece async for piece in pieces]).decode()


def test_the_first_release_is_kept() -> None:
    assert RELEASES[0] == "made_by_1_0_0rc1"


async def test_every_object_is_read_by_both_keys(made: Released, bucket: MemoryStorage) -> None:
    for key, text in made.texts.items():
        assert await _read(bucket, _operator(made), key) == text
        assert await _read_with(made.api_key(), bucket, key) == text


async def test_the_old_key_and_a_tombstone_open_nothing(
    made: Released, bucket: MemoryStorage
) -> None:
    for key in made.texts:
        with pytest.raises(NoUsableWrapError):
            await _read_with(made.api_key("old_api_key"), bucket, key)
    with pytest.raises(NotFoundError):
        await _read(bucket, _operator(made), "deleted")


async def test_the_independent_check_opens_everything(
    made: Released, bucket: MemoryStorage
) -> None:
    keks = {"m1": admin_kek(made.seeds()["master_key"], "acme")}
    report = VerifyReport()
    await check_project(bucket, VerificationKeys("acme", "admin", keks), report)
    assert report.verified
    assert report.counts["opened"] == len(made.texts) + 1


async def test_keyring_record_and_evidence_agree(made: Released, bucket: MemoryStorage) -> None:
    keyring = _keyring(made)
    assert keyring.current.kek == user_kek(made.api_key(), "acme")
    record = await SweepStore(bucket, operator_keys(_master_keys(made))).find("acme")
    assert isinstance(record, ProjectRecord)
    assert [origin.end is not None and origin.end.clean for origin in record.origins] == [True]
    bodies = made.bodies().items()
    files = [body for s3_key, body in bodies if s3_key.startswith(EVIDENCE_PREFIX)]
    key = SigningKey.from_seed(made.seeds()["event_seed"]).verify_key()
    chain = verify_chain(
        in_chain_order(files),
        [key],
        deployment=_DEPLOYMENT,
        project="acme",
        newest=keyring.evidence,
    )
    assert chain[-1].predicate.generation == keyring.current.generation


def test_the_mark_names_the_keyring(made: Released) -> None:
    message = made.messages[topology.KEYRING_MARKED]
    body = message["body"].encode()
    key = SigningKey.from_seed(made.seeds()["event_seed"]).verify_key()
    key.verify_mark(_DEPLOYMENT, body, message["headers"][topology.SIGNATURE_HEADER])
    mark = messages.parse_mark(body)
    known = Mark(mark.serial, bytes.fromhex(mark.digest), mark.generation)
    digest = hashlib.sha256(made.bodies()[keyring_s3_key("acme")]).digest()
    read = Mark(_keyring(made).serial, digest, _keyring(made).current.generation)
    assert compare(read, known, began_after=True) is Finding.MARKED


_PARSERS: Final[dict[str, Callable[[bytes], BaseModel]]] = {
    topology.AUDIT_RECORDED: messages.parse_audit,
    topology.WORKER_REPORTED: messages.parse_worker_report,
}


def test_every_message_verifies_and_parses(made: Released) -> None:
    seeds = made.seeds()
    publisher = SigningKey.from_seed(seeds["publisher_seed"]).verify_key()
    worker = SigningKey.from_seed(seeds["event_seed"]).verify_key()
    for name, message in made.messages.items():
        body, headers = message["body"].encode(), message["headers"]
        signature = headers[topology.SIGNATURE_HEADER]
        if name == topology.KEYRING_MARKED:
            continue
        if name.endswith(".requested"):
            publisher.verify_request(
                _DEPLOYMENT, headers[topology.PUBLISHER_HEADER], body, signature
            )
            assert messages.parse_request(body).type == name
        else:
            worker.verify_event(_DEPLOYMENT, body, signature)
            parsed = _PARSERS.get(name, messages.parse_event)(body)
            assert parsed.model_dump()["type"] == name


def test_what_requests_sealed_opens(made: Released) -> None:
    intake = {"main": IntakeKey.from_seed(made.seeds()["intake_seed"])}
    requests = {
        name: messages.parse_request(message["body"].encode())
        for name, message in made.messages.items()
        if name.endswith(".requested")
    }
    enroll, rotation = requests["enroll.requested"], requests["rotation.requested"]
    assert isinstance(enroll, messages.EnrollRequested)
    assert isinstance(rotation, messages.RotationRequested)
    for sealed, info, api_key in (
        (enroll.sealed_kek, kek_info("enroll", enroll.request_id, "acme"), "old_api_key"),
        (rotation.sealed_kek, kek_info("rotation", rotation.rotation_id, "acme"), "api_key"),
    ):
        assert sealed is not None
        opened = intake["main"].open(from_base64(sealed.ciphertext), info)
        assert Secret(opened) == user_kek(made.api_key(api_key), "acme")
    upload = requests["upload.requested"]
    assert isinstance(upload, messages.UploadRequested)
    assert upload.sealed_key is not None
    info = upload_info(upload.upload_id, "acme", upload.key)
    key = OpenedSessions(_DEPLOYMENT, intake).open_key(upload.sealed_key, info, "api")
    assert isinstance(upload.body, messages.InlineBody)
    body = from_base64(upload.body.inline)
    text = open_sealed(key, transport_context(upload.upload_id), body)
    assert text.decode() == made.texts[upload.key]
