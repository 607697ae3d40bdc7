"""The operator's keys for a command that shows no plaintext and no key (SPEC 15.3).

Each KEK that a provider derives for it is recorded in the audit trail. Such a command is also what
an operator has while the broker is away, so it runs without the trail then, and says so: the
provider's own log has the calls.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from keyturn.crypto import Secret
from keyturn.errors import SettingsError
from keyturn_workers.cli.command_audit import CommandAudit, command_audit
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.master_keys.providers import open_operator_keys
from keyturn_workers.settings import AuditSettings, OperatorSettings
from keyturn_workers.storage import Storage


@asynccontextmanager
async def open_report_keys(
    settings: OperatorSettings, storage: Storage, role: str
) -> AsyncIterator[OperatorKeys]:
    """The operator's keys until the block ends; `role` is the command's name.

    Raises:
        SettingsError: a setting that a provider needs is missing.
    """
    async with AsyncExitStack() as stack:
        audit = None
        if any(not isinstance(source, Secret) for source in settings.master_keys.values()):
            audit = await _open_audit(stack, role)
        keys = await stack.enter_async_context(
            open_operator_keys(
                settings,
                storage,
                seals=False,
                on_derived=None if audit is None else audit.kek_derived,
            )
        )
        yield keys


async def _open_audit(stack: AsyncExitStack, role: str) -> CommandAudit | None:
    try:
        return await stack.enter_async_context(command_audit(AuditSettings.read(), role))
    except (SettingsError, CommandError) as exc:
        note(f"derived KEKs are not recorded in the audit trail: {exc}")
        return None
