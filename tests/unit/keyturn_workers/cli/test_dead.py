"""`keyturn dead`: listing removes nothing; what cannot be moved stays in its queue (SPEC 12).

A letter is signed again only if its publisher signed it and may still send it.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from keyturn.crypto import VerifyKey, to_base64, upload_info
from keyturn.errors import (
    BadSealError,
    BadSignatureError,
    CodedError,
    NotPermittedError,
    StagedBodyMissingError,
    UnknownIntakeKeyError,
)
from keyturn.identifiers import staging_s3_key
from keyturn.messages import encode, parse_request
from keyturn.topology import (
    CONTROL_QUEUE,
    DEAD_QUEUES,
    UNSIGNED_DEAD_QUEUE,
    UPLOAD_QUEUE,
    dead_letter_name,
)
from keyturn_workers.cli import dead
from keyturn_workers.cli.app import app
from keyturn_workers.cli.dead import Resigner
from keyturn_workers.cli.settings import ResignSettings
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.pipeline.upload.sessions import OpenedSessions
from keyturn_workers.reports.dead_letters.move import move_letters
from keyturn_workers.reports.dead_letters.queue import UnreadableQueueError, read_letters
from tests.unit.keyturn_workers.cli.fakes import FakeAudit, use_bucket
from tests.unit.keyturn_workers.reports.dead_letters.memory_broker import (
    DEPLOYMENT,
    LONG_AGO,
    Letter,
    MemoryBroker,
    letter,
    upload,
)
from tools.harness import requests
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aio_pika import Message
    from typer.testing import Result

    from keyturn.publisher.connection import BrokerAddress
    from keyturn_workers.reports.dead_letters.queue import Letters

_DEAD = dead_letter_name(UPLOAD_QUEUE)
_CONTROL_DEAD = dead_letter_name(CONTROL_QUEUE)
_NEW_KEY = "kt_" + "n" * 43


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    made = MemoryBroker()
    for queue in DEAD_QUEUES:
        made.fill(queue)

    @asynccontextmanager
    async def opened(broker: BrokerAddress) -> AsyncIterator[Letters]:
        assert broker.url == DEPLOYMENT.amqp_url
        letters = made.letters()
        yield letters
        await letters.channel.close()

    monkeypatch.setattr(dead, "open_letters", opened)
    return made


@pytest.fixture(autouse=True)
def audit(monkeypatch: pytest.MonkeyPatch) -> FakeAudit:
    made = FakeAudit()
    monkeypatch.setattr(dead, "command_audit", made)
    return made


def _run(*arguments: str) -> Result:
    environment = DEPLOYMENT.worker_env() | DEPLOYMENT.publisher_env()
    return CliRunner().invoke(app, ["dead", *arguments], env=environment)


def _rows(*arguments: str, exit_code: int = 0) -> list[dict[str, Any]]:
    result = _run(*arguments, "--json")
    assert result.exit_code == exit_code, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def test_letters_of_every_queue_are_listed_and_none_is_taken(broker: MemoryBroker) -> None:
    first, second = letter(upload()), letter(requests.delete("acme", "k"), "unknown_project")
    broker.fill(_DEAD, first)
    broker.fill(_CONTROL_DEAD, second)
    rows = _rows("list")
    assert [(row["queue"], row["id"], row["code"]) for row in rows] == [
        (_DEAD, first.message_id, "request_expired"),
        (_CONTROL_DEAD, second.message_id, "unknown_project"),
    ]
    assert [row["queue"] for row in _rows("list", _CONTROL_DEAD)] == [_CONTROL_DEAD]
    assert not first.acknowledged


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> str:
    """The queue of dead uploads, which cannot be read."""

    def but_one(function: Any) -> Any:
        async def called(letters: Letters, queue: str, *rest: Any) -> Any:
            if queue == _DEAD:
                raise UnreadableQueueError(queue, 7)
            return await function(letters, queue, *rest)

        return called

    monkeypatch.setattr(dead, "read_letters", but_one(read_letters))
    monkeypatch.setattr(dead, "move_letters", but_one(move_letters))
    return f"the 7 letters of {_DEAD} cannot be read"


@pytest.mark.parametrize("arguments", [["show"], ["replay"], ["discard", "--yes"]])
def test_a_letter_is_found_though_another_queue_cannot_be_read(
    broker: MemoryBroker, unreadable: str, arguments: list[str]
) -> None:
    held = letter(requests.delete("acme", "k"))
    broker.fill(_CONTROL_DEAD, held)
    result = _run(*arguments, str(held.message_id))
    assert result.exit_code == 0, result.stderr
    assert unreadable in result.stderr
    assert held.acknowledged is (arguments != ["show"])
    missing = _run(*arguments, "none")
    assert missing.exit_code == 1
    assert unreadable in missing.stderr


def test_all_letters_but_those_of_a_queue_that_cannot_be_read_are_replayed(
    broker: MemoryBroker, unreadable: str
) -> None:
    broker.fill(_CONTROL_DEAD, letter(requests.delete("acme", "k")))
    rows = _rows("replay", "--all", exit_code=1)
    assert [(row["queue"], row["status"]) for row in rows] == [
        (_DEAD, "kept"),
        (_CONTROL_DEAD, "replayed"),
    ]
    assert unreadable in rows[0]["detail"]


@pytest.mark.usefixtures("unreadable")
def test_a_queue_that_cannot_be_read_is_named_and_the_others_are_listed(
    broker: MemoryBroker,
) -> None:
    broker.fill(_CONTROL_DEAD, letter(upload()))
    result = _run("list", "--json")
    assert [row["queue"] for row in json.loads(result.stdout)] == [_CONTROL_DEAD]
    assert f"the 7 letters of {_DEAD} cannot be read" in result.stderr


def test_a_list_that_is_cut_says_so(broker: MemoryBroker) -> None:
    broker.fill(_DEAD, *(letter(upload()) for _ in range(3)))
    result = _run("list", "--limit", "2")
    assert len(result.stdout.splitlines()) == 3
    assert f"{_DEAD} holds more" in result.stderr
    assert "holds more" not in _run("list", "--limit", "3").stderr


def test_only_the_letters_of_one_code_are_listed(broker: MemoryBroker) -> None:
    codes = ("request_expired", "bad_seal", "request_expired", "bad_seal", "not a code")
    broker.fill(_DEAD, *(letter(upload(), code) for code in codes))
    assert [row["code"] for row in _rows("list", "--code", "bad_seal")] == ["bad_seal"] * 2
    assert [row["code"] for row in _rows("list", "--code", "unknown")] == [None]
    assert _rows("list", "--code", "corrupt_object") == []


def test_the_limit_counts_only_letters_of_the_code(broker: MemoryBroker) -> None:
    broker.fill(_DEAD, *(letter(upload(), code) for code in ("request_expired", "bad_seal") * 2))
    cut, complete = (_run("list", "--code", "bad_seal", "--limit", limit) for limit in ("1", "2"))
    assert (len(cut.stdout.splitlines()), len(complete.stdout.splitlines())) == (2, 3)
    assert f"{_DEAD} holds more" in cut.stderr
    assert complete.stderr == ""


def test_letters_with_the_same_id_are_told_apart_by_their_digests(broker: MemoryBroker) -> None:
    """Any publisher can reuse the id of another message."""
    document = upload()
    first, second = letter(document), letter(document, "bad_seal")
    broker.fill(_DEAD, first, second)
    digests = [row["id"] for row in _rows("list")]
    assert len(set(digests)) == 2
    ambiguous = _run("discard", str(first.message_id), "--yes")
    assert ambiguous.exit_code == 1
    assert "several dead letters have the id" in ambiguous.stderr
    assert not first.acknowledged
    assert _rows("discard", digests[1], "--yes")[0]["status"] == "discarded"
    assert (first.acknowledged, second.acknowledged) == (False, True)


def test_a_letter_is_shown_without_its_sealed_parts(broker: MemoryBroker, tmp_path: Path) -> None:
    document = upload()
    shown = letter(document)
    broker.fill(_DEAD, shown)
    target = tmp_path / "raw"
    result = _run("show", str(shown.message_id), "--raw", str(target))
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["queue"], report["message_id"]) == (_DEAD, shown.message_id)
    assert report["headers"]["keyturn-code"] == "request_expired"
    assert report["body"]["key"] == "k"
    assert document["sealed_key"]["ciphertext"] not in result.stdout
    assert document["body"]["inline"] not in result.stdout
    assert target.read_bytes() == shown.body
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_replayed_letter_goes_back_to_its_queue_as_it_was_sent(broker: MemoryBroker) -> None:
    first, second = letter(upload()), letter(upload())
    broker.fill(_DEAD, first, second)
    assert [row["status"] for row in _rows("replay", str(second.message_id))] == ["replayed"]
    ((queue, copy),) = broker.sent
    assert (queue, copy.body, copy.message_id) == (UPLOAD_QUEUE, second.body, second.message_id)
    assert set(copy.headers) == {"keyturn-publisher", "keyturn-signature", "own"}
    assert (first.acknowledged, second.acknowledged) == (False, True)


def test_all_letters_go_back_each_to_its_own_queue(broker: MemoryBroker) -> None:
    broker.fill(_DEAD, letter(upload()), letter(upload()))
    broker.fill(_CONTROL_DEAD, letter(requests.delete("acme", "k")))
    assert len(_rows("replay", "--all")) == 3
    assert [queue for queue, _ in broker.sent] == [UPLOAD_QUEUE, UPLOAD_QUEUE, CONTROL_QUEUE]
    broker.fill(_DEAD, letter(upload()))
    broker.fill(_CONTROL_DEAD, letter(requests.delete("acme", "k")))
    assert len(_rows("replay", "--all", "--queue", _CONTROL_DEAD)) == 1


def test_a_letter_that_the_broker_does_not_accept_stays_in_its_queue(broker: MemoryBroker) -> None:
    kept = letter(upload())
    broker.fill(_DEAD, kept)
    broker.refuses = {kept.message_id}
    (row,) = _rows("replay", "--all", exit_code=1)
    assert (row["status"], kept.acknowledged) == ("kept", False)
    assert "the broker did not accept it" in row["detail"]


def test_a_letter_whose_body_was_not_kept_is_not_replayed(broker: MemoryBroker) -> None:
    dropped = letter(upload(), "bad_seal", **{"keyturn-body-dropped": "0" * 64})
    broker.fill(_DEAD, dropped, letter(upload()))
    rows = _rows("replay", "--all", exit_code=1)
    assert [row["status"] for row in rows] == ["kept", "replayed"]
    assert rows[0]["code"] == "malformed_request"
    assert not dropped.acknowledged


def _destructive() -> list[Letter]:
    """Expired requests that their publisher signed: served again, each would destroy something."""
    made = (
        requests.delete("acme", "k"),
        requests.sweep("*", encrypt_plaintext=True),
        requests.enroll(DEPLOYMENT, "acme"),
        requests.rotation(DEPLOYMENT, "acme", _NEW_KEY),
    )
    return [letter(document | {"requested_at": LONG_AGO}) for document in made]


@pytest.mark.parametrize("queue", [_DEAD, _CONTROL_DEAD, UNSIGNED_DEAD_QUEUE])
@pytest.mark.parametrize("selects", ["--all", "ids"])
def test_nothing_but_an_upload_is_signed_again_wherever_it_was_planted(
    broker: MemoryBroker, queue: str, selects: str
) -> None:
    """An attacker with write access to the broker can put old, genuine requests into any queue."""
    planted = _destructive()
    broker.fill(queue, *planted)
    ids = ["--all"] if selects == "--all" else [str(each.message_id) for each in planted]
    rows = _rows("replay", *ids, "--resign", exit_code=1)
    assert [(row["status"], row["code"]) for row in rows] == [("kept", "not_permitted")] * 4
    assert all("its publisher must publish it again" in row["detail"] for row in rows)
    assert (broker.sent, any(each.acknowledged for each in planted)) == ([], False)


@pytest.mark.parametrize("queue", [_CONTROL_DEAD, UNSIGNED_DEAD_QUEUE])
def test_an_upload_is_signed_again_only_in_the_queue_of_dead_uploads(
    broker: MemoryBroker, queue: str
) -> None:
    moved, own = letter(upload()), letter(upload())
    broker.fill(queue, moved)
    broker.fill(_DEAD, own)
    rows = _rows("replay", "--all", "--resign", exit_code=1)
    assert {row["id"]: row["code"] for row in rows} == {
        own.message_id: None,
        moved.message_id: "not_permitted",
    }
    assert [copy.message_id for _, copy in broker.sent] == [own.message_id]


def test_only_what_was_rejected_for_its_age_is_signed_again(broker: MemoryBroker) -> None:
    document = upload()
    other = letter(upload(), "bad_seal")
    broker.fill(_DEAD, letter(document), other)
    rows = _rows("replay", "--all", "--resign", exit_code=1)
    assert [row["status"] for row in rows] == ["replayed", "kept"]
    ((_, copy),) = broker.sent
    sent = json.loads(copy.body)
    assert sent["upload_id"] == document["upload_id"]
    assert sent["requested_at"] > LONG_AGO
    assert not other.acknowledged


def test_an_unknown_id_discards_nothing(broker: MemoryBroker) -> None:
    held = letter(upload())
    broker.fill(_DEAD, held)
    result = _run("discard", str(held.message_id), "none", "--yes")
    assert (result.exit_code, result.stderr) == (1, "keyturn: no dead letter has the id none\n")
    assert not held.acknowledged


def test_a_letter_of_no_request_has_a_digest_for_an_id(broker: MemoryBroker) -> None:
    odd = Letter(b"\x00not JSON", {}, None)
    broker.fill(_DEAD, odd)
    (row,) = _rows("list")
    assert row["id"].startswith("h-")
    assert _rows("discard", row["id"], "--yes")[0]["status"] == "discarded"
    assert odd.acknowledged


def test_a_letter_is_recorded_before_it_is_replayed(broker: MemoryBroker, audit: FakeAudit) -> None:
    document = upload()
    sent = letter(document)
    broker.fill(_DEAD, sent)
    _rows("replay", str(sent.message_id), "--reason", "the storage is back")
    (record,) = audit.records
    assert (record.action, record.outcome) == ("dead_letter.replayed", "started")
    assert (record.queue, record.request_type) == (_DEAD, "upload.requested")
    assert (record.request_id, record.project) == (document["upload_id"], "acme")
    assert record.request == hashlib.sha256(sent.body).hexdigest()
    assert (record.reason, record.publisher) == ("the storage is back", None)
    assert audit.opened == [("dead replay", "the storage is back")]


def test_a_discarded_letter_is_recorded(broker: MemoryBroker, audit: FakeAudit) -> None:
    sent = letter(requests.delete("acme", "k"))
    broker.fill(_CONTROL_DEAD, sent)
    _rows("discard", str(sent.message_id), "--yes")
    assert audit.outcomes == [("dead_letter.discarded", "started")]
    assert audit.opened == [("dead discard", None)]


def test_a_letter_that_the_broker_does_not_accept_is_recorded_as_failed(
    broker: MemoryBroker, audit: FakeAudit
) -> None:
    kept = letter(upload())
    broker.fill(_DEAD, kept)
    broker.refuses = {kept.message_id}
    _rows("replay", "--all", exit_code=1)
    assert audit.outcomes == [
        ("dead_letter.replayed", "started"),
        ("dead_letter.replayed", "failed"),
    ]


def test_what_cannot_be_recorded_is_neither_replayed_nor_discarded(
    broker: MemoryBroker, audit: FakeAudit
) -> None:
    sent = letter(upload())
    broker.fill(_DEAD, sent)
    audit.is_away = True
    for command in (("replay", "--all"), ("discard", str(sent.message_id), "--yes")):
        result = _run(*command)
        assert result.exit_code == 1
        assert "the audit trail cannot be written" in result.stderr
    assert (broker.sent, sent.acknowledged) == ([], False)


def test_a_letter_of_nobody_knows_whom_is_recorded_by_its_digest(
    broker: MemoryBroker, audit: FakeAudit
) -> None:
    odd = Letter(b"\xff", {"keyturn-publisher": "billing"}, "not an id")
    broker.fill(_DEAD, odd)
    _rows("discard", "not an id", "--yes")
    (record,) = audit.records
    assert record.request == hashlib.sha256(b"\xff").hexdigest()
    assert (record.request_id, record.project, record.request_type) == (None, None, None)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """The bucket and the settings of an operator who publishes as `gateway`."""
    made = MemoryStorage()

    use_bucket(monkeypatch, "dead", made)
    for name, value in (DEPLOYMENT.worker_env() | DEPLOYMENT.gateway_env()).items():
        monkeypatch.setenv(name, value)
    return made


async def _resign(dead: Letter) -> Message:
    async with Resigner(ResignSettings.read()) as resigner:
        return await resigner.copy(dead.message, _DEAD)


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
