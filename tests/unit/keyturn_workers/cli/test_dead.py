"""`keyturn dead`: looking takes nothing, and what cannot be done stays in its queue (SPEC 12)."""

from __future__ import annotations

import hashlib
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from keyturn.topology import CONTROL_QUEUE, DEAD_QUEUES, UPLOAD_QUEUE, dead_letter_name
from keyturn_workers.cli import dead
from keyturn_workers.cli.app import app
from tests.unit.keyturn_workers.cli.fakes import FakeAudit
from tests.unit.keyturn_workers.dead_letters.memory_broker import (
    DEPLOYMENT,
    LONG_AGO,
    Letter,
    MemoryBroker,
    letter,
    upload,
)
from tools.harness import requests

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aio_pika.abc import AbstractChannel
    from typer.testing import Result

    from keyturn.publisher.connection import BrokerAddress

_DEAD = dead_letter_name(UPLOAD_QUEUE)
_CONTROL_DEAD = dead_letter_name(CONTROL_QUEUE)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    made = MemoryBroker()
    for queue in DEAD_QUEUES:
        made.fill(queue)

    @asynccontextmanager
    async def opened(broker: BrokerAddress) -> AsyncIterator[AbstractChannel]:
        assert broker.url == DEPLOYMENT.amqp_url
        channel = made.channel()
        yield channel
        await channel.close()

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
