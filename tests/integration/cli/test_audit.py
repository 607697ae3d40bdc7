"""`keyturn audit` on a real broker: what operators and workers did, and what was done to it.

SPEC 15.3.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest

from keyturn.crypto import SigningKey, from_base64, to_base64
from keyturn.topology import (
    AUDIT_RECORDED,
    AUDIT_STREAM,
    CODE_HEADER,
    EVENT_KEY_HEADER,
    SIGNATURE_HEADER,
)
from keyturn_workers.core.key_uris import parse_key_uri
from keyturn_workers.keys.master_keys.providers import generate_master_key
from keyturn_workers.pipeline.amqp.declarations import declare
from keyturn_workers.process.settings import KmsSettings
from tests.integration.cli.conftest import cli_for, document
from tools.harness import requests
from tools.harness.bucket import Bucket
from tools.harness.deployment import Deployment
from tools.harness.process import worker
from tools.servers import new_bucket

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.cli.conftest import Cli
    from tools.servers import OpenBao, S3Server, Servers

pytestmark = pytest.mark.servers

_FAST = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.2"}
_OPERATOR = ("--as-operator", "--reason", "ticket 4711")


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def _raw_lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def _records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(from_base64(line["body"])) for line in _lines(file)]


async def _export(cli: Cli, file: Path, *arguments: str) -> list[dict[str, Any]]:
    exported = await cli.arun("audit", "export", str(file), *arguments)
    assert exported.exit_code == 0, exported.stderr
    return _records(file)


async def _bury(cli: Cli) -> str:
    """A dead letter that an operator may replay: a delete, refused while nothing was wrong."""
    request = requests.delete("acme", "b")
    body = requests.encode(request)
    headers: Any = requests.headers(body, cli.deployment.publisher_key)
    message = aio_pika.Message(
        body,
        headers=headers | {CODE_HEADER: "storage_unavailable"},
        message_id=request["request_id"],
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    async with await aio_pika.connect(cli.deployment.amqp_url) as connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(message, "keyturn.control.dead")
    request_id: str = request["request_id"]
    return request_id


async def _run_all(cli: Cli, *commands: tuple[str, ...]) -> None:
    for command in commands:
        result = await cli.arun(*command)
        assert result.exit_code == 0, (command, result.stderr)


@dataclass(frozen=True)
class Life:
    """A project's life: enrolled, rotated, an object deleted, one opened, a letter replayed."""

    cli: Cli
    trail: Path
    buried: str

    def worker_lines(self) -> list[bytes]:
        """The exported lines of the worker, which are one chain of four records."""
        records = zip(_raw_lines(self.trail), _records(self.trail), strict=True)
        return [line for line, record in records if record["role"].startswith("worker")]


@pytest.fixture(scope="module")
def life(broker: Servers, moto: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Life:
    url = broker.amqp_url if broker.rabbitmq is None else broker.rabbitmq.next_vhost_url()
    cli = cli_for(Deployment(url, moto, new_bucket(moto)))
    return asyncio.run(_live(cli, tmp_path_factory.mktemp("life")))


async def _live(cli: Cli, folder: Path) -> Life:
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(name.encode() * 100)
    async with worker(cli.deployment.worker_env(**_FAST)) as process:
        await _run_all(
            cli,
            ("enroll", "acme", "--generate", "--save-to", str(folder / "old")),
            ("upload", "acme", *(str(folder / name) for name in ("a", "b", "c"))),
            ("rotate", "acme", "--generate", "--save-to", str(folder / "new")),
            ("delete", "acme", "a"),
            ("download", "acme", "c", "-o", "-", *_OPERATOR),
        )
        buried = await _bury(cli)
        await _run_all(cli, ("dead", "replay", buried, "--reason", "the storage is back"))
        await process.logged(buried)
        assert await process.terminate() == 0
    await _run_all(cli, ("audit", "export", str(folder / "trail")))
    return Life(cli, folder / "trail", buried)


def test_what_happened_is_exported_and_verified(life: Life) -> None:
    assert stat.S_IMODE(life.trail.stat().st_mode) == 0o600
    records = _records(life.trail)
    assert [(r["action"], r.get("request_type"), r["outcome"]) for r in records] == [
        ("request.served", "enroll.requested", "done"),
        ("request.served", "rotation.requested", "done"),
        ("request.served", "delete.requested", "done"),
        ("object.opened_as_operator", None, "started"),
        ("dead_letter.replayed", "delete.requested", "started"),
        ("request.served", "delete.requested", "done"),
    ]
    served, opened, replayed = records[2], records[3], records[4]
    assert (served["actor"], served["publisher"], served["project"]) == ("api", "api", "acme")
    assert (served["object_count"], served["object_keys"]) == (1, ["a"])
    assert served["role"] == "worker control ingest sweep upload"
    assert (opened["object_key"], opened["reason"]) == ("c", "ticket 4711")
    assert opened["actor"].endswith(f"@{opened['host']}")
    assert (opened["counter"], opened["previous"]) == (1, None)
    assert (replayed["request_id"], replayed["queue"]) == (life.buried, "keyturn.control.dead")
    assert records[5]["request_id"] == life.buried
    assert replayed["request"] == records[5]["request"]
    by_worker = [r for r in records if r["process"] == served["process"]]
    assert [r["counter"] for r in by_worker] == [1, 2, 3, 4]
    assert len({r["process"] for r in records}) == 3
    verified = life.cli.run("audit", "verify", str(life.trail), "--json", AMQP_URL="")
    assert verified.exit_code == 0, verified.stderr
    assert document(verified)["findings"] == []
    assert [p["records"] for p in document(verified)["processes"]] == [4, 1, 1]


async def test_a_discarded_letter_is_recorded(cli: Cli, tmp_path: Path) -> None:
    await declare(cli.deployment.amqp_url)
    letter = await _bury(cli)
    discarded = await cli.arun("dead", "discard", letter, "--yes", "--reason", "a duplicate")
    assert discarded.exit_code == 0, discarded.stderr
    (record,) = await _export(cli, tmp_path / "trail")
    assert (record["action"], record["request_id"]) == ("dead_letter.discarded", letter)
    assert record["reason"] == "a duplicate"


async def test_a_part_of_the_trail_verifies(life: Life, tmp_path: Path) -> None:
    cli, records = life.cli, _records(life.trail)
    middle = records[2]["at"]
    later = await _export(cli, tmp_path / "later", "--since", middle)
    assert later == records[2:]
    earlier = await _export(cli, tmp_path / "earlier", "--until", middle)
    assert earlier == records[:2]
    assert await _export(cli, tmp_path / "recent", "--since", "1h", "--project", "acme") == records
    assert await _export(cli, tmp_path / "none", "--project", "other") == []
    for name, status in (("later", 0), ("earlier", 0), ("none", 1)):
        verified = await cli.arun("audit", "verify", str(tmp_path / name))
        assert verified.exit_code == status, verified.stderr
    of_one = await cli.arun("audit", "verify", str(tmp_path / "recent"), "--project", "acme")
    assert of_one.exit_code == 0
    of_another = await cli.arun("audit", "verify", str(tmp_path / "recent"), "--project", "other")
    assert of_another.exit_code == 1


def _refused(life: Life, file: Path, lines: list[bytes], problem: str) -> None:
    file.write_bytes(b"".join(lines))
    result = life.cli.run("audit", "verify", str(file))
    assert result.exit_code == 1
    assert f"keyturn: {problem}" in result.stderr


def test_a_removed_record_is_noticed(life: Life, tmp_path: Path) -> None:
    lines = life.worker_lines()
    del lines[1]
    _refused(life, tmp_path / "trail", lines, "MISSING: record 2 is missing before record 3")


def test_a_changed_record_is_noticed(life: Life, tmp_path: Path) -> None:
    lines = life.worker_lines()
    changed = json.loads(lines[3])
    body = from_base64(changed["body"])
    changed["body"] = to_base64(body.replace(b'"acme"', b'"other"'))
    assert from_base64(changed["body"]) != body
    lines[3] = json.dumps(changed).encode()
    _refused(life, tmp_path / "trail", lines, "FORGED: a record not signed by a known event key")


def test_reordered_records_are_noticed(life: Life, tmp_path: Path) -> None:
    first, second, third, fourth = life.worker_lines()
    lines = [first, third, second, fourth]
    _refused(life, tmp_path / "trail", lines, "OUT OF ORDER: record 2 comes after record 3")


def test_records_twice_are_no_problem(life: Life, tmp_path: Path) -> None:
    """Delivery is at least once."""
    lines = life.worker_lines()
    (tmp_path / "trail").write_bytes(b"".join([*lines[:3], *lines[1:]]))
    result = life.cli.run("audit", "verify", str(tmp_path / "trail"), "--json")
    assert result.exit_code == 0, result.stderr
    assert document(result)["repeated"] == 2


def _store(cli: Cli) -> None:
    """An object `c` of `acme`."""
    bucket = Bucket(cli.deployment)
    bucket.put_made("acme", bucket.made("acme", "c"))


_OPEN = ("download", "acme", "c", "-o", "-", *_OPERATOR)


async def test_a_forged_record_on_the_stream_is_noticed(cli: Cli, tmp_path: Path) -> None:
    """By an attacker who can write to the broker, and lacks the event key."""
    _store(cli)
    await _run_all(cli, _OPEN)
    (record,) = await _export(cli, tmp_path / "trail")
    forged = json.dumps(record | {"counter": 2, "actor": "somebody@else"}).encode()
    key = SigningKey.from_seed(os.urandom(32))
    signature = key.sign_event(cli.deployment.name, forged)
    headers: Any = {SIGNATURE_HEADER: signature, EVENT_KEY_HEADER: key.id}
    async with await aio_pika.connect(cli.deployment.amqp_url) as connection:
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.get_exchange("keyturn")
        await exchange.publish(aio_pika.Message(forged, headers=headers), AUDIT_RECORDED)
    exported = await cli.arun("audit", "export", str(tmp_path / "again"))
    assert exported.exit_code == 1
    assert "FORGED: a record not signed by a known event key" in exported.stderr
    assert len(_lines(tmp_path / "again")) == 2
    verified = await cli.arun("audit", "verify", str(tmp_path / "again"))
    assert verified.exit_code == 1


async def test_a_restarted_worker_begins_a_new_chain(cli: Cli, tmp_path: Path) -> None:
    for project in ("one", "two"):
        async with worker(cli.deployment.worker_env(**_FAST), "control"):
            assert (await cli.arun("enroll", "acme", API_KEY="k" * 43)).exit_code in (0, 1)
            assert (await cli.arun("enroll", project, API_KEY="k" * 43)).exit_code == 0
    records = await _export(cli, tmp_path / "trail")
    assert [r["counter"] for r in records] == [1, 2, 1, 2]
    assert [r["previous"] is None for r in records] == [True, False, True, False]
    assert len({r["process"] for r in records}) == 2
    assert [r["outcome"] for r in records] == ["done", "done", "already_enrolled", "done"]
    assert records[2]["action"] == "request.refused"


async def test_nothing_is_opened_while_the_broker_is_away(cli: Cli, tmp_path: Path) -> None:
    _store(cli)
    target = tmp_path / "out"
    arguments = ("download", "acme", "c", "-o", str(target), *_OPERATOR)
    refused = await cli.arun(*arguments, AMQP_URL="amqp://nobody@127.0.0.1:1/")
    assert refused.exit_code == 1
    assert refused.stderr.startswith(
        "keyturn: the audit trail cannot be written, so nothing was done: the broker"
    )
    assert not target.exists()
    assert (await cli.arun(*arguments)).exit_code == 0


async def test_a_command_declares_a_missing_stream(cli: Cli, tmp_path: Path) -> None:
    _store(cli)
    await declare(cli.deployment.amqp_url)
    async with await aio_pika.connect(cli.deployment.amqp_url) as connection:
        channel = await connection.channel()
        await channel.queue_delete(AUDIT_STREAM)
    await _run_all(cli, _OPEN)
    assert len(await _export(cli, tmp_path / "trail")) == 1


async def test_the_trail_is_followed(cli: Cli) -> None:
    """From the end on, as each record comes."""
    _store(cli)
    await _run_all(cli, _OPEN)
    tail = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "keyturn_workers", "audit", "tail", "--since", "1h", "--json",
        env={**os.environ, **cli.env}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert tail.stdout is not None
    try:
        async with asyncio.timeout(60):
            for offset in range(2):
                record = json.loads(await tail.stdout.readline())
                assert (record["action"], record["offset"]) == ("object.opened_as_operator", offset)
                if not offset:
                    await _run_all(cli, _OPEN)
    finally:
        tail.kill()
        await tail.wait()


async def test_keks_that_a_provider_derives_are_recorded(
    cli: Cli, openbao: OpenBao, tmp_path: Path
) -> None:
    """With the provider's own id of each call, in the chain of the worker."""
    held, names = openbao.uri("audited"), openbao.environment(None)
    values = {name.removeprefix("KEYTURN_").lower(): value for name, value in names.items()}
    await generate_master_key(parse_key_uri(held), KmsSettings.model_validate(values))
    env = {**cli.env, **names, "KEYTURN_MASTER_KEYS": json.dumps({"m1": held})}
    audited = replace(cli, env=env)
    (tmp_path / "c").write_bytes(b"c")
    async with worker({**cli.deployment.worker_env(**_FAST), **env}) as process:
        await _run_all(
            audited,
            ("enroll", "acme", "--generate", "--save-to", str(tmp_path / "key")),
            ("upload", "acme", str(tmp_path / "c")),
        )
        assert await process.terminate() == 0
    opened = await audited.arun("download", "acme", "c", "-o", "-", *_OPERATOR)
    assert (opened.exit_code, opened.stdout_bytes) == (0, b"c")
    records = await _export(cli, tmp_path / "trail")
    derived = [r for r in records if r["action"] == "kek.derived"]
    found = {(r["role"].split()[0], r["kind"]) for r in derived if r.get("project") == "acme"}
    assert found >= {("worker", "admin"), ("worker", "record"), ("download", "admin")}
    assert {(r["master_key"], r["provider"]) for r in derived} == {("m1", "vault")}
    calls = [r["provider_request_id"] for r in derived]
    assert len(set(calls)) == len(calls)
