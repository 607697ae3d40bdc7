"""The audit trail of one command (SPEC 15.3).

    async with command_audit(AuditSettings.read(), "download", reason) as audit:
        async with audit.act("object.opened_as_operator", project="acme", object_key="a.pdf"):
            ...  # the broker has the record

Nothing repeats a command that dies. So it records what it is about to do, and acts only once the
broker has the record. If the act then fails, it records that too, with the code as the outcome.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aio_pika.exceptions import AMQPException

from keyturn.errors import CodedError, PublisherError
from keyturn.messages import STARTED, AuditAction
from keyturn.publisher.connection import BrokerAddress, describe_broker_failure
from keyturn.topology import audit_queue
from keyturn_workers.audit import AuditProcess, AuditPublisher, AuditTrail, KekDerived
from keyturn_workers.audit.trail import declare_missing
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.settings import AuditSettings

TIMEOUT_S: Final = 10.0
FAILED: Final = "failed"
"""The outcome of a failure without a code."""


class _NoLog:
    """A command prints its result or its error, and of its records only that some are missing."""

    def recorded(self, fields: Mapping[str, Any]) -> None:
        pass

    def not_written(self, problem: str, pending: int) -> None:
        pass

    def abandoned(self, count: int) -> None:
        note(f"the broker did not confirm {count} record{'s' * (count != 1)} of the audit trail")


class CommandAudit:
    """Records what a command does; gives up after a while."""

    def __init__(self, trail: AuditTrail, reason: str | None, timeout_s: float) -> None:
        self._trail = trail
        self._reason = reason
        self._timeout_s = timeout_s

    async def record(self, action: AuditAction, **fields: Any) -> None:
        """Record one use; returns once the broker has it on disk.

        Args:
            action: What is done.
            fields: Further fields of `AuditRecorded`, such as `outcome` and `project`.

        Raises:
            CommandError: the broker did not confirm in time.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._trail.record(action, reason=self._reason, **fields)
        except TimeoutError as exc:
            raise CommandError(
                f"the audit trail was not written within {self._timeout_s:g} s"
            ) from exc

    async def kek_derived(self, derived: KekDerived) -> None:
        """Record that a provider derived a KEK; see `AuditTrail.kek_derived`."""
        await self._trail.kek_derived(derived)

    @asynccontextmanager
    async def act(self, action: AuditAction, **fields: Any) -> AsyncIterator[None]:
        """Record that the block starts, then run it; record once more if it fails.

        Args:
            action: What the block does.
            fields: Further fields of `AuditRecorded`.

        Raises:
            CommandError: the broker did not confirm in time; the block did not run.
        """
        await self.record(action, outcome=STARTED, **fields)
        try:
            yield
        except Exception as exc:
            outcome = exc.code if isinstance(exc, CodedError) else FAILED
            await self.record(action, outcome=outcome, **fields)
            raise


@asynccontextmanager
async def command_audit(
    settings: AuditSettings, role: str, reason: str | None = None, *, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[CommandAudit]:
    """The audit trail of this command. The broker is tried first.

    Args:
        settings: The broker, and the event key that signs.
        role: The command's name.
        reason: Why the person does it, for each record.
        timeout_s: How long the connection, or a record, may take.

    Raises:
        CommandError: the broker is away, or the trail's stream is missing.
    """
    broker = BrokerAddress.of(settings)
    publisher = AuditPublisher(broker, settings.deployment, settings.event_key[0], timeout_s)
    stream = audit_queue(settings.audit_max_age_s, settings.audit_max_bytes)
    try:
        try:
            await publisher.connect()
            async with asyncio.timeout(timeout_s):
                await declare_missing(broker, stream)
        except (PublisherError, AMQPException, OSError) as exc:
            problem = str(exc) if isinstance(exc, PublisherError) else describe_broker_failure(exc)
            raise CommandError(
                f"the audit trail cannot be written, so nothing was done: {problem}"
            ) from exc
        trail = AuditTrail(AuditProcess.start(role), publisher.publish, log=_NoLog())
        # KEKs that a provider derived are recorded without a wait: their records may be on the way.
        async with trail.running(drain_s=timeout_s):
            yield CommandAudit(trail, reason, timeout_s)
    finally:
        await publisher.close()
