"""An audit trail without a broker, for the tests of commands."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from keyturn_workers.cli.audit import CommandAudit
from keyturn_workers.cli.errors import CommandError
from tests.unit.keyturn_workers.audit.memory import Stream, trail_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.messages import AuditRecorded
    from keyturn_workers.settings import AuditSettings


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
