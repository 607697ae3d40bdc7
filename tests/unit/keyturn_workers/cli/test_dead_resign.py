"""A letter is signed again only if its publisher signed it and may still send it (SPEC 12)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import VerifyKey, to_base64, upload_info
from keyturn.errors import (
    BadSealError,
    BadSignatureError,
    CodedError,
    GenerationMismatchError,
    NotPermittedError,
    StagedBodyMissingError,
    UnknownIntakeKeyError,
    UnknownProjectError,
)
from keyturn.identifiers import staging_s3_key
from keyturn.messages import encode, parse_request
from keyturn.topology import CONTROL_QUEUE, UPLOAD_QUEUE
from keyturn_workers.cli.dead import Resigner
from keyturn_workers.cli.settings import ResignSettings
from keyturn_workers.keyring import create_keyring
from keyturn_workers.settings import OperatorSettings
from keyturn_workers.storage import Headers
from keyturn_workers.upload.sessions import OpenedSessions
from tests.unit.keyturn_workers.cli.fakes import use_bucket
from tests.unit.keyturn_workers.dead_letters.memory_broker import (
    DEPLOYMENT,
    LONG_AGO,
    Letter,
    letter,
    upload,
)
from tests.unit.keyturn_workers.factories import keyring, rotated
from tools.harness import requests
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from aio_pika import Message

    from keyturn_workers.keyring import Keyring

_NEW_KEY = "kt_" + "n" * 43


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """The bucket and the settings of an operator who publishes as `gateway`."""
    made = MemoryStorage()

    use_bucket(monkeypatch, "dead", made)
    for name, value in (DEPLOYMENT.worker_env() | DEPLOYMENT.gateway_env()).items():
        monkeypatch.setenv(name, value)
    return made


async def _resign(dead: Letter, queue: str = UPLOAD_QUEUE, *, named: bool = True) -> Message:
    async with Resigner(ResignSettings.read(), named=named) as resigner:
        return await resigner.copy(dead.message, queue)


def _verified(message: Message) -> Any:
    """The request, after its new signature was verified."""
    key = VerifyKey.from_bytes(DEPLOYMENT.gateway_key.public_bytes)
    assert message.headers["keyturn-publisher"] == "gateway"
    key.verify_request("test", "gateway", message.body, str(message.headers["keyturn-signature"]))
    return parse_request(message.body)


@pytest.mark.usefixtures("storage")
async def test_an_expired_request_gets_a_new_time_and_signature_and_keeps_its_id() -> None:
    document = upload()
    message = await _resign(letter(document))
    request = _verified(message)
    assert message.message_id == request.upload_id == document["upload_id"]
    assert request.requested_at > LONG_AGO
    again = json.loads(message.body)
    assert again == document | {"requested_at": again["requested_at"]}
    assert set(message.headers) == {"keyturn-publisher", "keyturn-signature"}


@pytest.mark.parametrize("code", ["bad_seal", "not_permitted", "already_exists", ""])
@pytest.mark.usefixtures("storage")
async def test_what_was_rejected_for_its_content_gets_no_second_chance(code: str) -> None:
    with pytest.raises(NotPermittedError, match="only request_expired"):
        await _resign(letter(upload(), code))


@pytest.mark.usefixtures("storage")
async def test_a_request_that_has_not_expired_is_not_signed_again() -> None:
    """The code is not signed: anybody who may write to the broker can put it on a letter."""
    with pytest.raises(NotPermittedError, match="it has not expired"):
        await _resign(letter(upload(requested_at=requests.now())))


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"keyturn-signature": ""}, BadSignatureError),
        ({"keyturn-publisher": "unknown"}, BadSignatureError),
        ({"keyturn-publisher": "narrow"}, BadSignatureError),
    ],
)
@pytest.mark.usefixtures("storage")
async def test_what_its_publisher_did_not_sign_is_not_signed_again(
    headers: dict[str, str], error: type[CodedError]
) -> None:
    with pytest.raises(error):
        await _resign(letter(upload(), **headers))


@pytest.mark.usefixtures("storage")
async def test_what_its_publisher_may_not_send_is_not_signed_again() -> None:
    body = requests.encode(upload())
    signed = requests.headers(body, DEPLOYMENT.narrow_key, publisher="narrow")
    with pytest.raises(NotPermittedError):
        await _resign(Letter(body, signed | {"keyturn-code": "request_expired"}))


@pytest.mark.parametrize("build", ["enroll", "rotation"])
async def test_an_enrollment_or_a_rotation_is_signed_again_only_if_it_is_named(
    storage: MemoryStorage, build: str
) -> None:
    document = (
        requests.enroll(DEPLOYMENT, "acme")
        if build == "enroll"
        else requests.rotation(DEPLOYMENT, "acme", _NEW_KEY)
    )
    dead = letter(document | {"requested_at": LONG_AGO})
    with pytest.raises(NotPermittedError, match="only if it is named by its id"):
        await _resign(dead, CONTROL_QUEUE, named=False)
    assert storage.calls["read"] == 0


def _keyring(requested_at: str) -> Keyring:
    """The project's keyring, sealed under the deployment's master key, at generation 2."""
    ring = rotated(keyring())
    return replace(ring, current=replace(ring.current, requested_at=requested_at))


async def _enroll(storage: MemoryStorage, requested_at: str) -> None:
    master_keys = OperatorSettings.read().master_keys
    assert await create_keyring(
        storage, _keyring(requested_at), operator_keys(master_keys), lease_s=15
    )


async def _rotation(**more: Any) -> Any:
    document = requests.rotation(DEPLOYMENT, "acme", _NEW_KEY, **more)
    dead = letter(document | {"requested_at": "2026-02-01T00:00:00.000000Z"})
    return _verified(await _resign(dead, CONTROL_QUEUE))


async def test_a_rotation_is_bound_to_the_generation_that_it_follows(
    storage: MemoryStorage,
) -> None:
    """Should another one be accepted before it arrives, it is refused."""
    await _enroll(storage, LONG_AGO)
    assert (await _rotation()).expected_generation == 2
    assert (await _rotation(expected_generation=2)).expected_generation == 2
    with pytest.raises(GenerationMismatchError, match="the project is at generation 2"):
        await _rotation(expected_generation=1)


async def test_a_rotation_before_the_current_one_is_never_brought_back(
    storage: MemoryStorage,
) -> None:
    await _enroll(storage, "2026-03-01T00:00:00.000000Z")
    with pytest.raises(GenerationMismatchError, match="would bring back an old key"):
        await _rotation()


@pytest.mark.usefixtures("storage")
async def test_a_rotation_of_a_project_without_a_keyring_is_refused() -> None:
    with pytest.raises(UnknownProjectError):
        await _rotation()


def _under_a_session(publisher: str, **changes: Any) -> tuple[Letter, bytes]:
    """An expired upload under a session of this publisher, and its transport key."""
    made = requests.upload(DEPLOYMENT, "acme", "k", b"hello")
    requests.put_under_a_session(DEPLOYMENT, made, publisher)
    return letter(made.document | {"requested_at": LONG_AGO} | changes), made.transport_key


@pytest.mark.usefixtures("storage")
async def test_a_key_under_a_session_of_another_publisher_is_sealed_again() -> None:
    dead, transport_key = _under_a_session("api")
    before = json.loads(dead.body)
    request = _verified(await _resign(dead))
    assert request.sealed_key.session is None
    info = upload_info(request.upload_id, "acme", "k")
    opened = OpenedSessions("test", {"main": DEPLOYMENT.intake})
    assert opened.open_key(request.sealed_key, info, "gateway") == transport_key
    unchanged = json.loads(encode(request))
    for name in before.keys() - {"sealed_key", "requested_at"}:
        assert unchanged[name] == before[name]


async def test_a_session_of_the_same_publisher_is_kept(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no intake key."""
    del storage
    monkeypatch.setenv("KEYTURN_PUBLISHER_NAME", "api")
    monkeypatch.delenv("KEYTURN_INTAKE_KEYS")
    dead, _ = _under_a_session("api")
    message = await _resign(dead)
    assert json.loads(message.body)["sealed_key"] == json.loads(dead.body)["sealed_key"]


@pytest.mark.parametrize(
    ("intake_keys", "problem"),
    [
        (None, "KEYTURN_INTAKE_KEYS is missing"),
        ("{", "KEYTURN_INTAKE_KEYS is malformed"),
        (json.dumps({"second": to_base64(bytes(32))}), "it is main"),
    ],
)
async def test_without_the_intake_key_another_publishers_session_stays_dead(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch, intake_keys: str | None, problem: str
) -> None:
    if intake_keys is None:
        monkeypatch.delenv("KEYTURN_INTAKE_KEYS")
    else:
        monkeypatch.setenv("KEYTURN_INTAKE_KEYS", intake_keys)
    dead, _ = _under_a_session("api", body={"staged": {"size": 5}})
    with pytest.raises(UnknownIntakeKeyError, match=problem) as refused:
        await _resign(dead)
    assert "KEYTURN_INTAKE_KEYS must have the intake key" in refused.value.detail
    assert not storage.calls["put_stream"]


@pytest.mark.usefixtures("storage")
async def test_a_session_that_is_not_the_publishers_is_not_opened_for_it() -> None:
    """`api` signed a session of `narrow`: no worker would open it either."""
    with pytest.raises(BadSealError):
        await _resign(_under_a_session("narrow")[0])


async def test_a_staged_body_moves_to_where_the_new_publisher_stages(
    storage: MemoryStorage,
) -> None:
    document = upload(body={"staged": {"size": 5}})
    source = staging_s3_key("api", document["upload_id"])
    with pytest.raises(StagedBodyMissingError, match="is gone"):
        await _resign(letter(document))
    storage.plant(source, b"four", Headers({}))
    with pytest.raises(StagedBodyMissingError, match="does not have 5 bytes"):
        await _resign(letter(document))
    storage.plant(source, b"12345", Headers({}))
    assert _verified(await _resign(letter(document))).upload_id == document["upload_id"]
    _, body = await storage.read(staging_s3_key("gateway", document["upload_id"]))
    assert body == b"12345"
