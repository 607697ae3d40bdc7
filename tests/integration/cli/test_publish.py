"""`enroll`, `upload` and `doctor` with a real worker, and every file read back."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from typing import TYPE_CHECKING

import aio_pika
import pytest

from keyturn.topology import queues
from keyturn_workers.pipeline.amqp.declarations import declare
from tests.integration.cli.conftest import document
from tools.harness.process import gateway, worker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.cli.conftest import Cli

pytestmark = pytest.mark.servers


async def test_enroll_upload_and_download_a_folder(cli: Cli, tmp_path: Path) -> None:
    key_file, folder = tmp_path / "api-key", tmp_path / "d"
    (folder / "sub").mkdir(parents=True)
    bodies = {"d/a.txt": b"hello", "d/sub/big.bin": os.urandom(700_000), "d/empty": b""}
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
    (folder / "bad\nname").write_bytes(b"x")
    async with (
        worker(cli.deployment.worker_env()),
        gateway(cli.deployment.gateway_env()) as served,
    ):
        enrolled = await cli.arun(
            "enroll", "acme", "--generate", "--save-to", str(key_file), "--json"
        )
        assert enrolled.exit_code == 0, enrolled.stderr
        assert document(enrolled)["event"]["generation"] == 1
        api_key = key_file.read_text().strip()
        assert api_key not in enrolled.output
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600

        sent = await cli.arun("upload", "acme", str(folder), "--json")
        assert sent.exit_code == 1  # one of the names is no key
        rows = {row["key"]: row for row in document(sent)}
        assert rows["d/bad\nname"]["code"] == "malformed_request"
        assert {key: rows[key]["event"]["size"] for key in bodies} == {
            key: len(body) for key, body in bodies.items()
        }
        for key, body in bodies.items():
            arguments = ["download", "acme", key, "-o", "-"]
            for result in (
                await cli.arun(*arguments, "--api-key-file", str(key_file), GATEWAY_URL=served.url),
                await cli.arun(*arguments, "--as-operator", "--reason", "a test"),
            ):
                assert (result.exit_code, result.stdout_bytes) == (0, body)
        report = document(await cli.arun("inspect", "acme", "d/a.txt", "--json"))
        assert report["content_type"] == "text/plain"

        again = await cli.arun("upload", "acme", str(folder / "a.txt"), "--key", "d/a.txt")
        assert again.exit_code == 1
        assert again.stderr.startswith("keyturn: already_exists: ")
        piped = await cli.arun(
            "upload",
            "acme",
            "-",
            "--key",
            "piped",
            "--metadata",
            "from=stdin",
            stdin=b"through a pipe",
        )
        assert piped.exit_code == 0, piped.stderr
        read = await cli.arun(
            "download", "acme", "piped", "-o", "-", "--as-operator", "--reason", "a test"
        )
        assert read.stdout_bytes == b"through a pipe"

        second = await cli.arun("enroll", "acme", API_KEY=api_key)
        assert second.exit_code == 1
        assert second.stderr.startswith("keyturn: already_enrolled: ")


async def test_a_generated_key_is_printed_before_anything_is_published(cli: Cli) -> None:
    # Nothing serves here: publishing fails, and the key has been shown all the same.
    result = await cli.arun("enroll", "acme", "--generate")
    assert result.exit_code == 1
    assert result.stdout.startswith("API key (shown only once): kt_")
    assert "no worker has declared" in result.stderr


async def test_without_waiting_the_requests_are_queued(cli: Cli, tmp_path: Path) -> None:
    await declare(cli.deployment.amqp_url, ["api"])
    (tmp_path / "a").write_bytes(b"a")
    sent = await cli.arun("upload", "acme", str(tmp_path / "a"), "--no-wait", "--json")
    assert (sent.exit_code, document(sent)[0]["status"]) == (0, "queued")
    enrolled = await cli.arun(
        "enroll", "acme", "--no-wait", "--json", API_KEY=cli.deployment.api_key
    )
    assert (enrolled.exit_code, document(enrolled)["status"]) == (0, "queued")
    pending = await cli.arun("upload", "acme", str(tmp_path / "a"), "--timeout-s", "0.5")
    assert pending.exit_code == 1
    assert "no event of" in pending.stderr


async def test_a_publisher_that_the_workers_do_not_know_learns_where_to_look(
    cli: Cli, tmp_path: Path
) -> None:
    """It has no stream of events: its requests are in `keyturn.unsigned.dead`."""
    (tmp_path / "a").write_bytes(b"a")
    async with worker(cli.deployment.worker_env()):
        sent = await cli.arun(
            "upload", "acme", str(tmp_path / "a"), "--timeout-s", "3", PUBLISHER_NAME="stranger"
        )
        assert sent.exit_code == 1
        assert "no worker has declared keyturn.events.stranger" in sent.stderr
        assert "are in keyturn.unsigned.dead: see `keyturn dead list`" in sent.stderr
        assert "unsigned" not in sent.stdout  # once is enough
        async with asyncio.timeout(60):
            while True:
                listed = document(await cli.arun("dead", "list", "--json"))
                if listed:
                    break
    assert [(row["queue"], row["code"]) for row in listed] == [
        ("keyturn.unsigned.dead", "bad_signature")
    ]


async def test_a_refused_enrollment_or_rotation_leaves_no_key_file(
    cli: Cli, tmp_path: Path
) -> None:
    kept, refused = tmp_path / "kept", tmp_path / "refused"
    async with worker(cli.deployment.worker_env()):
        first = await cli.arun("enroll", "acme", "--generate", "--save-to", str(kept))
        assert first.exit_code == 0, first.stderr
        again = await cli.arun("enroll", "acme", "--generate", "--save-to", str(refused))
        assert (again.exit_code, refused.exists()) == (1, False)
        assert "already_enrolled" in again.stderr
        rotated = await cli.arun(
            *("rotate", "acme", "--expected-generation", "7"),
            *("--generate", "--save-to", str(refused)),
        )
        assert (rotated.exit_code, refused.exists()) == (1, False)
        assert "generation_mismatch" in rotated.stderr
    assert kept.exists()


async def test_doctor_reports_on_bucket_and_broker(cli: Cli) -> None:
    before = await cli.arun("doctor", "--json")
    rows = {row["check"]: row for row in document(before)}
    assert rows["broker"]["ok"]
    assert not rows["queues declared"]["ok"]
    count = len(queues()) + 1
    assert rows["queues declared"]["result"].startswith(f"{count} of {count} missing: keyturn, ")
    short, long = await cli.arun("doctor"), await cli.arun("doctor", "--verbose")
    assert f"{count} of {count} missing" in short.stdout
    assert "keyturn.upload.dead" not in short.stdout
    assert all(queue.name in long.stdout for queue in queues())
    required = [row for row in rows.values() if row["needed"] == "required"]
    assert before.exit_code == (0 if all(row["ok"] for row in required) else 1)
    await declare(cli.deployment.amqp_url)
    after = {row["check"]: row for row in document(await cli.arun("doctor", "--json"))}
    assert after["queues declared"]["ok"]
    away = await cli.arun("doctor", AMQP_URL="amqp://u:secret@127.0.0.1:1/")
    assert away.exit_code == 1
    assert "broker" in away.stderr
    assert "secret" not in away.output


async def test_an_interrupted_upload_says_how_to_go_on(cli: Cli, tmp_path: Path) -> None:
    await declare(cli.deployment.amqp_url, ["api"])
    (tmp_path / "a").write_bytes(b"a")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "keyturn_workers",
        "upload",
        "acme",
        str(tmp_path / "a"),
        env={**os.environ, **cli.env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    # Its request is on the queue, so it can only be waiting for the event.
    async with await aio_pika.connect(cli.deployment.amqp_url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue("keyturn.upload", ensure=False)
        async with queue.iterator(timeout=60) as messages:
            async for message in messages:
                await message.ack()
                break
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    (line,) = err.decode().splitlines()
    assert line.startswith("keyturn: 0 of 1 files are stored, 1 more were sent and will be")
    assert "To go on, run the same command again" in line
