"""`keyturn recover` shows what it found, and requests exactly that (SPEC 5.5)."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import typer

from keyturn.crypto import to_base64
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.cli import recover
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.keys.keyring.marks import Mark, MarkState, MarkTable
from tests.unit.keyturn_workers.cli.fakes import Commands, Terminal, event, use_bucket
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring
from tests.unit.keyturn_workers.witness import mark_of
from tools.harness.local_keys import build_keyring
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from typer.testing import Result

_REASON = "restored from a backup"


class _Bench:
    """Two projects: `acme` was rolled back, and `bob` was not."""

    def __init__(self, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands, self.table, self.storage = commands, MarkTable(), MemoryStorage()
        self.bodies = [self._body("acme", serial) for serial in (1, 2)]
        self.table.receive("acme", mark_of(self.bodies[1]))
        self.put("acme", self.bodies[0])
        self.put("bob", self._body("bob", 0))

        @asynccontextmanager
        async def open_marks(*_: object) -> AsyncIterator[SimpleNamespace]:
            yield SimpleNamespace(
                table=self.table, is_current=True, check_current=lambda _project: None
            )

        monkeypatch.setattr("keyturn_workers.cli.recover.open_marks", open_marks)
        use_bucket(monkeypatch, "recover", self.storage)

    def _body(self, project: str, serial: int) -> bytes:
        return build_keyring(replace(keyring(project), serial=serial), MASTER_KEYS)

    def put(self, project: str, body: bytes) -> None:
        self.storage.plant(keyring_s3_key(project), body, Headers({}))

    def run(self, project: str, *options: str) -> Result:
        master_keys = {name: to_base64(key.reveal()) for name, key in MASTER_KEYS.items()}
        return self.commands.run(
            "recover",
            project,
            "--accept-restored",
            _REASON,
            *options,
            MASTER_KEYS=json.dumps(master_keys),
            S3_BUCKET="memory",
        )


@pytest.fixture
def bench(fake: Commands, monkeypatch: pytest.MonkeyPatch) -> _Bench:
    return _Bench(fake, monkeypatch)


def _answer(bench: _Bench, type_: str, **fields: Any) -> None:
    bench.commands.publisher.script = lambda name: [event(type_, request_id=name, **fields)]


@pytest.mark.parametrize("options", [[], ["--yes"]])
@pytest.mark.parametrize("target", ["acme", "*"])
def test_the_request_names_the_record_and_the_mark_that_were_shown(
    bench: _Bench, target: str, options: list[str]
) -> None:
    _answer(bench, "project.recovered", generation=1, serial=3)
    result = bench.run(target, *options)
    assert result.exit_code == 0, result.output
    assert "rolled_back" in result.stdout
    ((method, given),) = bench.commands.publisher.sent
    marks = [mark_of(body) for body in bench.bodies]
    assert (method, given["project"], given["reason"]) == ("recover", "acme", _REASON)
    assert given["digest"] == marks[0].digest.hex()
    assert (given["serial"], given["mark"]) == (2, marks[1].digest.hex())


def test_on_a_terminal_a_person_may_still_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = recover.Contradicted(
        "acme", MarkState.ROLLED_BACK, Mark(1, bytes(32), 1), None, None, None
    )
    for answer in ("n\n", "\n"):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        with pytest.raises(typer.Abort):
            recover._confirm([keyring], yes=False, as_json=True)
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    recover._confirm([keyring], yes=False, as_json=True)


def test_a_refusal_is_a_failure(bench: _Bench) -> None:
    _answer(bench, "recover.rejected", code="generation_mismatch", detail="changed")
    result = bench.run("acme", "--yes", "--json")
    assert result.exit_code == 1
    assert [row["status"] for row in json.loads(result.stdout)] == ["rejected"]
    assert "generation_mismatch" in result.stderr


@pytest.mark.parametrize(
    ("project", "problem"),
    [("bob", "nothing to recover"), ("carol", "neither a keyring nor a mark")],
)
def test_a_project_that_needs_none_is_not_recovered(
    bench: _Bench, project: str, problem: str
) -> None:
    result = bench.run(project, "--yes")
    assert result.exit_code == 1
    assert problem in result.stderr
    assert not bench.commands.publisher.sent


def test_a_removed_keyring_is_restored_or_adopted_instead(bench: _Bench) -> None:
    bench.table.receive("dave", mark_of(bench.bodies[1]))
    result = bench.run("dave", "--yes")
    assert result.exit_code == 1
    assert "keyturn enroll dave --adopt" in result.stderr
    _answer(bench, "project.recovered", generation=1, serial=3)
    result = bench.run("*", "--yes")
    assert result.exit_code == 0
    assert "keyturn enroll dave --adopt" in result.stderr
