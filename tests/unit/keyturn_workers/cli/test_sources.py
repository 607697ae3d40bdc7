"""`keyturn sources` and `keyturn import`: what they say while nothing happens (SPEC 17)."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from rich.progress import Progress, TextColumn
from typer.testing import CliRunner

from keyturn.crypto import IntakeKey, SigningKey, to_base64
from keyturn_workers.cli import sources as cli_sources
from keyturn_workers.cli.app import app
from keyturn_workers.cli.sources import _ImportProgress
from keyturn_workers.pipeline.ingest.importing import ImportResult
from keyturn_workers.pipeline.sources.bucket import SourceBucket
from tests.unit.keyturn_workers.cli.fakes import use_bucket
from tests.unit.keyturn_workers.storage.probe.broken_storages import DeletesAnyway
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.core.source_mapping import Source


def test_without_a_source_it_names_the_setting() -> None:
    master_keys = json.dumps({"m1": to_base64(bytes(32))})
    env = {"KEYTURN_MASTER_KEYS": master_keys, "KEYTURN_S3_BUCKET": "bucket"}
    result = CliRunner().invoke(app, ["sources"], env=env)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("no sources: KEYTURN_SOURCES")
    assert len(result.stdout.splitlines()) == 1


def test_a_source_that_is_not_set_is_named_with_the_reason() -> None:
    env = {"KEYTURN_MASTER_KEYS": json.dumps({"m1": to_base64(bytes(32))})}
    env |= {"KEYTURN_S3_BUCKET": "bucket"}
    result = CliRunner().invoke(app, ["sources", "drop"], env=env)
    assert result.exit_code == 1
    assert result.stderr.rstrip().endswith("no source 'drop'; it is empty or not set")


def test_an_import_without_a_worker_says_what_it_waits_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now_s = 0.0
    with Progress(TextColumn("{task.fields[counts]}"), disable=True) as bar:
        progress = _ImportProgress(bar, waits=True, clock=lambda: now_s)
        assert bar.tasks[0].fields["counts"] == "waiting for a worker: 0 objects, 0 bytes"
        for second in range(41):
            now_s = second
            progress.tick(lines=True)
        lines = capsys.readouterr().err.splitlines()
        line = "keyturn: waiting for a worker: 0 objects, 0 bytes"
        assert lines.count(line) == 8  # every five seconds
        (warning,) = set(lines) - {line}
        assert warning.startswith("keyturn: no outcome in 30 s: no worker has served")
        progress.show(ImportResult(objects=1, size_bytes=2))
        assert bar.tasks[0].fields["counts"] == "1 objects, 2 bytes"


def test_what_waits_for_no_worker_does_not_name_one(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 0.0
    with Progress(TextColumn("{task.fields[counts]}"), disable=True) as bar:
        progress = _ImportProgress(bar, waits=False, clock=lambda: now_s)
        now_s = 60.0
        progress.tick(lines=True)
    assert capsys.readouterr().err == "keyturn: 0 objects, 0 bytes\n"


@pytest.mark.parametrize("is_safe", [True, False])
def test_a_source_that_cannot_delete_safely_shows_that(
    monkeypatch: pytest.MonkeyPatch, *, is_safe: bool
) -> None:
    own = MemoryStorage()

    @asynccontextmanager
    async def opened(name: str, source: Source, *_: object) -> AsyncIterator[SourceBucket]:
        storage = MemoryStorage() if is_safe else DeletesAnyway()
        yield SourceBucket(name, source, storage, own)

    use_bucket(monkeypatch, "sources", own)
    monkeypatch.setattr(cli_sources, "open_source", opened)
    fields = {"bucket": "the-drop", "project": "acme", "key": "{name}"}
    sources = {"kept": fields, "emptied": {**fields, "delete": True}}
    env = {
        "KEYTURN_MASTER_KEYS": json.dumps({"m1": to_base64(bytes(32))}),
        "KEYTURN_S3_BUCKET": "bucket",
        "KEYTURN_SOURCES": json.dumps(sources),
    }
    result = CliRunner().invoke(app, ["sources", "--json"], env=env)
    assert result.exit_code == 0, result.stderr
    shown = {row["source"]: row["delete"] for row in json.loads(result.stdout)}
    assert shown == {"kept": False, "emptied": True if is_safe else "not possible"}


def test_a_source_out_of_reach_is_one_line_beside_the_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing of a worker's log is between what a program reads."""
    use_bucket(monkeypatch, "sources", MemoryStorage())
    source = {
        "bucket": "the-drop",
        "project": "acme",
        "key": "{name}",
        "endpoint_url": "http://127.0.0.1:9",
        "access_key_id": "k",
        "secret_access_key": "s",
        "delete": True,
    }
    intake = to_base64(IntakeKey.from_seed(bytes(32)).public_bytes)
    env = {
        "KEYTURN_MASTER_KEYS": json.dumps({"m1": to_base64(bytes(32))}),
        "KEYTURN_AMQP_URL": "amqp://127.0.0.1:9/",
        "KEYTURN_PUBLISHER_NAME": "api",
        "KEYTURN_PUBLISHER_KEY": to_base64(bytes(32)),
        "KEYTURN_INTAKE_PUBLIC_KEY": f"main:{intake}",
        "KEYTURN_EVENT_PUBLIC_KEY": to_base64(SigningKey.from_seed(bytes(32)).public_bytes),
        "KEYTURN_S3_BUCKET": "bucket",
        "KEYTURN_SOURCES": json.dumps({"drop": source}),
    }
    result = CliRunner().invoke(app, ["import", "drop", "--dry-run", "--json"], env=env)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("keyturn: source_unavailable: ")
