"""A publisher without a broker: it records requests and yields scripted events."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from typer.testing import CliRunner

from keyturn.messages import COUNT_FIELDS, parse_event
from keyturn.publisher import WaitTimeoutError
from keyturn.publisher.event_matcher import is_answer
from keyturn_workers.cli.app import app

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from pathlib import Path

    import pytest
    from typer.testing import Result

    from keyturn.messages import Event

AT = "2026-11-24T10:00:00Z"
_TYPES = {
    "enroll": "enroll.requested",
    "upload": "upload.requested",
    "rotate": "rotation.requested",
    "sweep": "sweep.requested",
    "delete_many": "delete.requested",
    "recover": "recover.requested",
}


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
    """

    script: Callable[[str], list[Event]] = lambda _: []
    sent: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    interrupt: bool = False

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

    async def wait(
        self, request_id: str, *, timeout_s: float, project: str, request_type: str
    ) -> Event:
        self._check(project, request_type)
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
    for module in ("delete", "projects", "recover", "upload"):
        monkeypatch.setattr(f"keyturn_workers.cli.{module}.Publisher", publisher)
    return Commands(publisher, env_file)
