"""`keyturn audit` shows what was signed, and a command is recorded before it acts (SPEC 15.3)."""

from __future__ import annotations

import asyncio
import io
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from keyturn.audit import Problem
from keyturn.crypto import EventVerifier, VerifyKey, from_base64, to_base64
from keyturn.errors import BadSealError, BrokerUnavailableError, NotDeliveredError
from keyturn.identifiers import format_time
from keyturn.publisher.event_stream import StreamRecord
from keyturn_workers.cli import audit
from keyturn_workers.cli import audit as module
from keyturn_workers.cli.app import app
from keyturn_workers.cli.audit import (
    CommandAudit,
    Inspection,
    command_audit,
    is_of_project,
    read_lines,
    to_line,
)
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.keys.audit.trail import AuditPublisher
from keyturn_workers.keys.master_keys.port import KekDerived
from keyturn_workers.process.settings import AuditSettings
from tests.unit.keyturn.test_audit import DEPLOYMENT, KEY, chain
from tests.unit.keyturn_workers.keys.audit.memory import EVENT_KEY, Stream, trail_to

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from typer.testing import Result

_ENV = {
    "KEYTURN_DEPLOYMENT": DEPLOYMENT,
    "KEYTURN_AMQP_URL": "amqp://localhost/",
    "KEYTURN_EVENT_PUBLIC_KEY": to_base64(KEY.public_bytes),
}
SIGNATURES = EventVerifier(DEPLOYMENT, [VerifyKey.from_bytes(KEY.public_bytes)])
_HEADERS = b'"headers": {"keyturn-signature": "", "keyturn-event-key": ""}'
SETTINGS = AuditSettings.model_validate(
    {"deployment": "test", "amqp_url": "amqp://nobody@127.0.0.1:1/", "event_key": (EVENT_KEY,)}
)


def _stream(count: int, first: int = 0, **fields: Any) -> list[StreamRecord]:
    records = chain(count, **fields)
    return [StreamRecord(first + number, *record) for number, record in enumerate(records)]


class _EndError(Exception):
    """The test has no more records."""


class FakeStream:
    """The stream of the audit trail."""

    def __init__(self) -> None:
        self.records: list[StreamRecord] = []
        self.starts: list[Any] = []
        self.knows_its_end = True

    async def follow(self, _: object, start: Any, name: str) -> AsyncGenerator[StreamRecord, None]:
        assert name == "keyturn.audit"
        self.starts.append(start)
        for record in self.records:
            yield record
        if not self.knows_its_end:
            await asyncio.Event().wait()
        raise _EndError

    async def last_offset(self, _: object, name: str) -> int | None:
        assert name == "keyturn.audit"
        return self.records[-1].offset if self.records and self.knows_its_end else None


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeStream:
    made = FakeStream()
    monkeypatch.setattr(audit, "follow", made.follow)
    monkeypatch.setattr(audit, "last_offset", made.last_offset)
    monkeypatch.setattr(audit, "_SILENCE_S", 0.01)
    return made


def _run(*arguments: str, stdin: bytes | None = None, **env: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments], input=stdin, env=_ENV | env)


def _at(ago: timedelta) -> dict[str, Any]:
    return {"at": format_time(datetime.now(UTC) - ago)}


def test_tail_shows_a_line_for_each_record_from_now_on(fake: FakeStream) -> None:
    fake.records = _stream(2)
    result = _run("tail")
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert "request.served rotation.requested acme done by Kim Doe" in lines[0]
    (start,) = fake.starts
    assert abs(datetime.now(UTC) - start) < timedelta(minutes=1)


def test_tail_shows_why_and_what(fake: FakeStream) -> None:
    fake.records = _stream(
        1, action="object.opened_as_operator", object_key="a/b", request_type=None, reason="4711"
    )
    assert "object.opened_as_operator acme/a/b done by Kim Doe (4711)" in _run("tail").stdout


def test_tail_shows_records_since_a_moment_and_checks_the_earlier_ones(fake: FakeStream) -> None:
    old = _stream(3, **_at(timedelta(hours=2)))
    del old[1]
    fake.records = [*old, *_stream(1, first=3)]
    fake.records[-1] = _stream(1, first=3, **_at(timedelta(minutes=1)))[0]
    lines = _run("tail", "--since", "1h").stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("!!! MISSING: record 2 is missing before record 3")
    (start,) = fake.starts
    assert datetime.now(UTC) - start >= timedelta(hours=1)


def test_tail_as_json_has_findings_between_the_records(fake: FakeStream) -> None:
    fake.records = _stream(3)
    del fake.records[1]
    lines = [json.loads(line) for line in _run("tail", "--json").stdout.splitlines()]
    assert [line.get("counter") for line in lines] == [1, 3, 3]
    assert lines[1]["finding"] == "missing"
    assert lines[2]["offset"] == 2


def test_tail_shows_nothing_of_a_forged_record_but_that_it_is_there(fake: FakeStream) -> None:
    (record,) = _stream(1)
    fake.records = [StreamRecord(0, record.body, "")]
    assert _run("tail").stdout == "!!! FORGED: a record not signed by a known event key\n"


def test_export_writes_all_there_is(fake: FakeStream, tmp_path: Path) -> None:
    fake.records = _stream(3)
    file = tmp_path / "trail"
    result = _run("export", str(file))
    assert result.exit_code == 0, result.output
    assert result.stderr == "keyturn: 3 records exported\n"
    assert fake.starts == ["first"]
    assert file.stat().st_mode & 0o777 == 0o600
    verified = _run("verify", str(file))
    assert verified.exit_code == 0, verified.stderr
    assert "worker control" in verified.stdout
    again = _run("export", str(file))
    assert again.exit_code == 1
    assert "File exists" in again.stderr


def test_export_ends_though_nothing_follows(fake: FakeStream) -> None:
    fake.knows_its_end = False
    fake.records = _stream(2)
    result = _run("export", "-")
    assert len(result.stdout.splitlines()) == 2
    fake.records = []
    assert (_run("export", "-").stdout, len(fake.starts)) == ("", 2)


def test_export_of_a_time_and_a_project(fake: FakeStream) -> None:
    old, new = (_stream(2, first=n, **_at(timedelta(days=d))) for n, d in ((0, 3), (2, 1)))
    other = _stream(1, first=4, project="other", **_at(timedelta(days=1)))
    forged = StreamRecord(5, b"{}", "")
    fake.records = [*old, *new, *other, forged]

    def offsets(*arguments: str) -> list[int]:
        return [
            json.loads(line)["offset"]
            for line in _run("export", "-", *arguments).stdout.splitlines()
        ]

    assert offsets() == [0, 1, 2, 3, 4, 5]
    assert offsets("--since", "2d") == [2, 3, 4, 5]
    assert offsets("--until", "2d") == [0, 1]
    assert offsets("--since", "2d", "--project", "acme") == [2, 3]


def test_export_writes_a_trail_with_a_problem_and_fails(fake: FakeStream, tmp_path: Path) -> None:
    fake.records = _stream(3)
    del fake.records[1]
    result = _run("export", str(tmp_path / "trail"))
    assert result.exit_code == 1
    assert "MISSING" in result.stderr
    assert len((tmp_path / "trail").read_bytes().splitlines()) == 2


def test_verify_reads_standard_input_and_needs_no_broker(fake: FakeStream) -> None:
    fake.records = _stream(2)
    exported = _run("export", "-").stdout_bytes
    result = _run("verify", "-", "--json", stdin=exported, KEYTURN_AMQP_URL="")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["records"] == 2


def test_verify_names_what_is_wrong_and_fails(fake: FakeStream, tmp_path: Path) -> None:
    fake.records = _stream(3)
    lines = _run("export", "-").stdout_bytes.splitlines(keepends=True)
    file = tmp_path / "trail"
    file.write_bytes(lines[0] + lines[2])
    result = _run("verify", str(file))
    assert result.exit_code == 1
    assert "MISSING: record 2 is missing before record 3" in result.stderr
    foreign = _run("verify", str(file), KEYTURN_DEPLOYMENT="another")
    assert "FORGED" in foreign.stderr
    missing = _run("verify", str(tmp_path / "none"))
    assert (missing.exit_code, "No such file" in missing.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("tail",), "KEYTURN_EVENT_PUBLIC_KEY"),
        (("export", "-"), "KEYTURN_EVENT_PUBLIC_KEY"),
        (("verify", "-"), "KEYTURN_EVENT_PUBLIC_KEY"),
    ],
)
def test_a_missing_setting_is_named(arguments: tuple[str, ...], name: str) -> None:
    result = _run(*arguments, KEYTURN_EVENT_PUBLIC_KEY="")
    assert (result.exit_code, f"{name} is missing" in result.stderr) == (2, True)


def test_a_moment_that_is_none_is_wrong_usage(fake: FakeStream) -> None:
    result = _run("tail", "--since", "yesterday")
    assert result.exit_code == 2
    assert "how long ago" in result.stderr
    assert fake.starts == []


def _inspect(records: list[StreamRecord], project: str | None = None) -> Inspection:
    inspection = Inspection(SIGNATURES, project)
    for record in records:
        inspection.add(record)
    return inspection


def test_a_line_holds_the_signed_bytes() -> None:
    (record,) = _stream(1)
    line = json.loads(to_line(record))
    assert from_base64(line["body"]) == record.body
    assert line["headers"]["keyturn-signature"] == record.signature
    assert line["headers"]["keyturn-event-key"] == KEY.id


def test_what_is_written_is_read() -> None:
    records = [*_stream(3), StreamRecord(3, b"\xff no JSON", "", "")]
    file = io.BytesIO(b"".join(map(to_line, records)) + b"\n")
    assert list(read_lines(file)) == records


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"offset": 0, "body": "?", "headers": {}}',
        b'{"offset": -1, "body": "", %s}' % _HEADERS,
        b'{"offset": 0, "body": "?", %s}' % _HEADERS,
        b'{"offset": 0, "body": 7, %s}' % _HEADERS,
    ],
)
def test_a_line_that_is_no_record_is_named(line: bytes) -> None:
    first = to_line(_stream(1)[0])
    with pytest.raises(CommandError, match=r"^line 2 is not an exported audit record$"):
        list(read_lines(io.BytesIO(first + line)))


def test_a_sound_trail() -> None:
    records = _stream(3)
    inspection = _inspect([*records, records[1]])
    inspection.check()
    document = inspection.document()
    assert (document["records"], document["repeated"], document["findings"]) == (4, 1, [])
    (process,) = document["processes"]
    assert (process["first"], process["last"], process["records"]) == (1, 3, 3)
    assert (process["role"], process["host"]) == ("worker control", "control-1")


def test_a_trail_with_a_gap() -> None:
    records = _stream(4)
    inspection = _inspect([records[0], *records[2:]])
    with pytest.raises(CommandError, match=r"^1 problem in the audit trail; first: MISSING"):
        inspection.check()
    (finding,) = inspection.document()["findings"]
    assert (finding["finding"], finding["counter"]) == ("missing", 3)


def test_a_trail_from_the_first_message_of_the_stream_must_be_whole() -> None:
    later = _stream(4, first=10)[1:]
    assert _inspect(later).findings == []
    first = [StreamRecord(0, record.body, record.signature) for record in later]
    assert [finding.problem for finding in _inspect(first).findings] == [Problem.MISSING]


def test_a_file_of_one_project_has_records_of_it_alone() -> None:
    records = _stream(5)
    assert _inspect([records[1], records[3]], "acme").findings == []
    assert len(_inspect([records[1], records[3]], "other").findings) == 2
    assert _inspect(_stream(2, project="*"), "acme").findings == []


def test_what_is_of_a_project() -> None:
    inspection = Inspection(SIGNATURES)
    record, _ = inspection.add(_stream(1)[0])
    everything, _ = inspection.add(_stream(1, project="*")[0])
    assert is_of_project(record, "acme")
    assert not is_of_project(record, "other")
    assert is_of_project(everything, "other")
    assert not is_of_project(None, "acme")


@pytest.mark.parametrize("options", [(), ("--project", "acme"), ("--json",)])
def test_a_file_without_a_record_proves_nothing(options: tuple[str, ...]) -> None:
    """An export that was cut to nothing, or a wrong file name in a script, is no clean trail."""
    result = _run("verify", "-", *options, stdin=b"\n")
    assert result.exit_code == 1
    assert "the file has no record" in result.stderr


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
