"""Fakes of what commands contact: a bucket, the audit trail, a publisher, a provider of keys."""

from __future__ import annotations

import asyncio
import io
import json
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from typer.testing import CliRunner

from keyturn.crypto import Secret, expand_prk, master_prk
from keyturn.errors import KmsUnavailableError
from keyturn.messages import COUNT_FIELDS, parse_event
from keyturn.publisher import WaitTimeoutError
from keyturn.publisher.event_matcher import is_answer
from keyturn_workers.cli.app import app
from keyturn_workers.cli.audit import CommandAudit
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.keys.master_keys.local import LocalMasterKey
from keyturn_workers.keys.master_keys.port import Derivation, KeyDescription
from tests.unit.keyturn_workers.keys.audit.memory import Stream, trail_to

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from pathlib import Path

    import pytest
    from typer.testing import Result

    from keyturn.messages import AuditRecorded, Event
    from keyturn_workers.core.key_uris import KeyUri
    from keyturn_workers.keys.master_keys.port import MasterKey
    from keyturn_workers.process.settings import AuditSettings, KmsSettings, MasterKeySource
    from tools.harness.memory_storage import MemoryStorage

AT = "2026-11-24T10:00:00Z"
_TYPES = {
    "enroll": "enroll.requested",
    "upload": "upload.requested",
    "rotate": "rotation.requested",
    "sweep": "sweep.requested",
    "delete_many": "delete.requested",
    "recover": "recover.requested",
    "erase": "erase.requested",
}
URI = "vault:https://vault.example.com:8200/transit/keyturn-m1?version=1"
OTHER_URI = "vault:https://vault.example.com:8200/transit/keyturn-m2?version=1"
MASTER_KEY = Secret(bytes(range(32)))
PRK = master_prk(MASTER_KEY.reveal())


class Terminal(io.StringIO):
    """Standard input or output that is a terminal."""

    def isatty(self) -> bool:
        return True


def use_bucket(monkeypatch: pytest.MonkeyPatch, module: str, storage: MemoryStorage) -> None:
    """Let the commands of a module of `keyturn_workers.cli` open this bucket."""

    @asynccontextmanager
    async def opened(*_: object, **__: object) -> AsyncIterator[MemoryStorage]:
        yield storage

    monkeypatch.setattr(f"keyturn_workers.cli.{module}.open_bucket", opened)


@dataclass
class FakeAudit:
    """Takes the place of `command_audit`.

    Attributes:
        is_away: The trail cannot be written.
        opened: The role and the reason of each command.
    """

    stream: Stream = field(default_factory=Stream)
    is_away: bool = False
    opened: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def records(self) -> list[AuditRecorded]:
        return self.stream.records

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        return [(record.action, record.outcome) for record in self.records]

    @asynccontextmanager
    async def __call__(
        self, settings: AuditSettings, role: str, reason: str | None = None, **_: Any
    ) -> AsyncIterator[CommandAudit]:
        assert settings.event_key
        self.opened.append((role, reason))
        if self.is_away:
            raise CommandError("the audit trail cannot be written, so nothing was done: away")
        trail = trail_to(self.stream, is_logged=False)
        async with trail.running():
            yield CommandAudit(trail, reason, 5)


def event(type_: str, at: str = AT, **fields: Any) -> Event:
    """An event of this type; counts default to zero."""
    counts: dict[str, Any] = {}
    if type_.endswith((".completed", ".progressed")):
        counts = dict.fromkeys(COUNT_FIELDS, 0) | {"clean": True}
    origin = {"publisher": "api", "request": "0" * 64}
    document = {"type": type_, "project": "acme", "at": at} | origin | counts | fields
    return parse_event(json.dumps(document).encode())


@dataclass
class FakePublisher:
    """Replaces `Publisher`.

    Attributes:
        script: The events for a request, by its id.
        sent: The published requests: method and arguments.
        errors: Raised by the first publications, one each.
        delay_s: How long each wait takes.
    """

    script: Callable[[str], list[Event]] = lambda _: []
    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    interrupt: bool = False
    delay_s: float = 0

    @asynccontextmanager
    async def open(self, *_: object, **__: object) -> AsyncIterator[FakePublisher]:
        yield self

    def _publish(self, method: str, id_field: str, **given: Any) -> str:
        self.sent.append((method, given))
        if self.errors:
            raise self.errors.pop(0)
        request_id: str = given[id_field]
        return request_id

    async def enroll(self, project: str, **given: Any) -> str:
        return self._publish("enroll", "request_id", project=project, **given)

    async def upload(self, project: str, key: str, body: AsyncIterator[bytes], **given: Any) -> str:
        read = b"".join([block async for block in body])
        return self._publish("upload", "upload_id", project=project, key=key, body=read, **given)

    async def rotate(self, project: str, **given: Any) -> str:
        return self._publish("rotate", "rotation_id", project=project, **given)

    async def sweep(self, project: str, **given: Any) -> str:
        return self._publish("sweep", "sweep_id", project=project, **given)

    async def delete_many(self, project: str, keys: list[str], **given: Any) -> str:
        return self._publish("delete_many", "request_id", project=project, keys=keys, **given)

    def delete_outcomes(self, request_id: str) -> dict[str, Event]:
        outcomes = cast("Any", self.script(request_id))
        return {event.key: event for event in outcomes}

    async def recover(self, project: str, **given: Any) -> str:
        return self._publish("recover", "request_id", project=project, **given)

    async def erase(self, project: str, **given: Any) -> str:
        return self._publish("erase", "request_id", project=project, **given)

    async def wait(
        self, request_id: str, *, timeout_s: float, project: str, request_type: str
    ) -> Event:
        self._check(project, request_type)
        await asyncio.sleep(self.delay_s)
        for scripted in self.script(request_id):
            if is_answer(scripted):
                return scripted
        raise WaitTimeoutError(f"no event of {request_id} in {timeout_s:g} s")

    async def progress(
        self, request_id: str, *, project: str, request_type: str
    ) -> AsyncGenerator[Event, None]:
        self._check(project, request_type)
        for scripted in self.script(request_id):
            yield scripted
        if self.interrupt:
            raise KeyboardInterrupt

    def _check(self, project: str, request_type: str) -> None:
        """Only the last request is waited for."""
        method, given = self.sent[-1]
        assert (given["project"], _TYPES[method]) == (project, request_type)


@dataclass
class Commands:
    """Runs commands with the fake publisher and its settings."""

    publisher: FakePublisher
    env_file: Path

    def run(self, *arguments: str, stdin: bytes | None = None, **env: str) -> Result:
        named = {f"KEYTURN_{name}": value for name, value in env.items()}
        return CliRunner().invoke(
            app, ["--env-file", str(self.env_file), *arguments], env=named, input=stdin
        )


def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands with a fake publisher and without a bucket."""
    folder = tmp_path / "settings"
    made = CliRunner().invoke(app, ["init", "--dir", str(folder)])
    assert made.exit_code == 0, made.stderr
    env_file = folder / "publisher.env"
    lines = env_file.read_text().splitlines(keepends=True)
    env_file.write_text("".join(line for line in lines if "KEYTURN_S3_" not in line))
    publisher = FakePublisher()
    for module in ("delete", "erase", "projects", "recover", "upload"):
        monkeypatch.setattr(f"keyturn_workers.cli.{module}.Publisher", publisher)
    return Commands(publisher, env_file)


@dataclass
class FakeKey:
    """One key of the provider.

    Attributes:
        prk: Its value.
        wrong: Every nth derivation is another one; 0 for none.
        failure: What derivations fail with.
        undescribed: What a description fails with.
        description: Further fields of the description.
        derivations: How many there were.
    """

    prk: Secret
    wrong: int = 0
    failure: str | None = None
    undescribed: str | None = None
    description: dict[str, object] = field(default_factory=dict)
    derivations: int = 0
    closed: int = 0


class _Opened:
    provider = "vault"

    def __init__(self, location: str, kms: FakeKms) -> None:
        self._location = location
        self._kms = kms

    async def derive(self, info: bytes) -> Derivation:
        key = self._key()
        if key.failure is not None:
            raise KmsUnavailableError(key.failure)
        key.derivations += 1
        if key.wrong and key.derivations % key.wrong == 0:
            return Derivation(Secret(os.urandom(32)))
        return Derivation(expand_prk(key.prk, info))

    async def describe(self) -> KeyDescription:
        key = self._key()
        if key.undescribed is not None or key.failure is not None:
            raise KmsUnavailableError(key.undescribed or key.failure or "")
        return KeyDescription("vault", self._location, "1", **key.description)  # type: ignore[arg-type]

    async def aclose(self) -> None:
        if self._location in self._kms.keys:
            self._key().closed += 1

    def _key(self) -> FakeKey:
        if self._location not in self._kms.keys:
            raise KmsUnavailableError("the key does not exist")
        return self._kms.keys[self._location]


@dataclass
class FakeKms:
    """The keys of the provider by location.

    Attributes:
        keys: As said.
        refusal: Why it neither imports nor generates.
        garbles: An import stores something else.
    """

    keys: dict[str, FakeKey] = field(default_factory=dict)
    refusal: str | None = None
    garbles: bool = False
    imports: int = 0
    generated: int = 0

    def open(self, source: MasterKeySource, settings: KmsSettings) -> MasterKey:
        del settings
        if isinstance(source, Secret):
            return LocalMasterKey(source)
        return _Opened(source.location, self)

    async def import_(self, source: KeyUri, settings: KmsSettings, prk: Secret) -> None:
        del settings
        self._check(source)
        self.imports += 1
        self.keys[source.location] = FakeKey(Secret(os.urandom(32)) if self.garbles else prk)

    async def generate(self, source: KeyUri, settings: KmsSettings) -> None:
        del settings
        self._check(source)
        self.generated += 1
        self.keys[source.location] = FakeKey(Secret(os.urandom(32)))

    def _check(self, source: KeyUri) -> None:
        if self.refusal is not None:
            raise ValueError(self.refusal)
        if source.location in self.keys:
            raise ValueError("the key exists already")


def fake_kms(monkeypatch: pytest.MonkeyPatch) -> FakeKms:
    """A provider that the commands use instead of every other."""
    kms = FakeKms()
    monkeypatch.setattr("keyturn_workers.cli.keys.open_master_key", kms.open)
    monkeypatch.setattr("keyturn_workers.cli.keys.import_master_key", kms.import_)
    monkeypatch.setattr("keyturn_workers.cli.keys.generate_master_key", kms.generate)
    return kms
