"""A command acts only once the broker has the record of it (SPEC 15.3)."""

from __future__ import annotations

import asyncio

import pytest

from keyturn.errors import BadSealError, BrokerUnavailableError, NotDeliveredError
from keyturn_workers.audit import AuditPublisher, KekDerived
from keyturn_workers.cli import audit as module
from keyturn_workers.cli.audit import CommandAudit, command_audit
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.settings import AuditSettings
from tests.unit.keyturn_workers.audit.memory import EVENT_KEY, Stream, trail_to

SETTINGS = AuditSettings.model_validate(
    {"deployment": "test", "amqp_url": "amqp://nobody@127.0.0.1:1/", "event_key": (EVENT_KEY,)}
)


async def test_the_record_is_there_before_the_act_and_once_more_if_it_fails() -> None:
    stream = Stream()
    trail = trail_to(stream)
    async with trail.running():
        audit = CommandAudit(trail, "ticket 4711", 5)
        async with audit.act("object.opened_as_operator", project="acme", object_key="k"):
            (record,) = stream.records
            assert (record.outcome, record.reason) == ("started", "ticket 4711")
        assert len(stream.records) == 1
        for error, outcome in ((BadSealError(), "bad_seal"), (OSError(), "failed")):
            with pytest.raises(type(error)):
                async with audit.act("object.opened_as_operator", project="acme", object_key="k"):
                    raise error
            assert stream.records[-1].outcome == outcome
            assert stream.records[-1].object_key == "k"
    assert stream.findings() == []


async def test_without_a_confirmation_nothing_is_done() -> None:
    stream = Stream(is_away=True)
    trail = trail_to(stream)
    done = False
    async with trail.running(drain_s=0):
        audit = CommandAudit(trail, None, 0.05)
        with pytest.raises(CommandError, match=r"not written within 0\.05 s"):
            async with audit.act("dead_letter.discarded"):
                done = True
    assert not done


async def test_a_broker_that_is_away_is_named_before_anything_is_done() -> None:
    with pytest.raises(CommandError, match="nothing was done: the broker cannot be reached"):
        async with command_audit(SETTINGS, "download", timeout_s=2):
            pytest.fail("it was entered")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (NotDeliveredError("no worker has declared keyturn.audit; start one"), "no worker has"),
        (
            ConnectionResetError("amqp://user:password@host"),
            "nothing was done: the connection",
        ),
        (BrokerUnavailableError("the broker cannot be reached (X)"), "cannot be reached"),
    ],
)
async def test_what_keeps_it_from_being_written_is_named(
    error: Exception, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(_: AuditPublisher) -> None:
        await asyncio.sleep(0)

    async def declare(*_: object) -> None:
        raise error

    monkeypatch.setattr(AuditPublisher, "connect", connect)
    monkeypatch.setattr(module, "declare_missing", declare)
    with pytest.raises(CommandError) as refused:
        async with command_audit(SETTINGS, "download"):
            pytest.fail("it was entered")
    assert shown in str(refused.value)
    assert "password" not in str(refused.value)


async def test_the_role_and_the_reason_are_in_each_record(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()

    async def connect(_: AuditPublisher) -> None:
        await asyncio.sleep(0)

    async def publish(_: AuditPublisher, audit_id: str, body: bytes) -> None:
        await stream.publish(audit_id, body)

    async def declare(*_: object) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(AuditPublisher, "connect", connect)
    monkeypatch.setattr(AuditPublisher, "publish", publish)
    monkeypatch.setattr(module, "declare_missing", declare)
    async with command_audit(SETTINGS, "dead replay", "why") as audit:
        await audit.record("dead_letter.replayed", outcome="started", queue="keyturn.upload.dead")
    (record,) = stream.records
    assert (record.role, record.reason, record.counter) == ("dead replay", "why", 1)
    assert record.actor.endswith(f"@{record.host}")


async def test_what_a_provider_derived_last_is_recorded_before_the_command_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Stream()

    async def nothing(*_: object) -> None:
        await asyncio.sleep(0)

    async def publish(_: AuditPublisher, audit_id: str, body: bytes) -> None:
        await asyncio.sleep(0.01)
        await stream.publish(audit_id, body)

    monkeypatch.setattr(AuditPublisher, "connect", nothing)
    monkeypatch.setattr(AuditPublisher, "publish", publish)
    monkeypatch.setattr(module, "declare_missing", nothing)
    async with command_audit(SETTINGS, "download", "why") as audit:
        await audit.kek_derived(KekDerived("m1", "vault", "admin", "acme", "req-1"))
    assert [record.action for record in stream.records] == ["kek.derived"]


async def test_records_that_the_broker_does_not_confirm_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def nothing(*_: object) -> None:
        await asyncio.sleep(0)

    async def publish(*_: object) -> None:
        raise BrokerUnavailableError("away")

    monkeypatch.setattr(AuditPublisher, "connect", nothing)
    monkeypatch.setattr(AuditPublisher, "publish", publish)
    monkeypatch.setattr(module, "declare_missing", nothing)
    async with command_audit(SETTINGS, "download", "why", timeout_s=0.05) as audit:
        await audit.kek_derived(KekDerived("m1", "vault", "admin", "acme", "req-1"))
    line = "keyturn: the broker did not confirm 1 record of the audit trail\n"
    assert capsys.readouterr() == ("", line)
