"""The view of this process's master keys, and whether each can be used now (SPEC 2.2, 16.1)."""

from keyturn.errors import CodedError, StorageUnavailableError
from keyturn.messages import MasterKeyStatus
from keyturn_workers.master_keys.operator_keys import OperatorKeys


async def read_master_keys(
    keys: OperatorKeys, active_master_key: str | None
) -> tuple[MasterKeyStatus, ...]:
    """A row for each master key, each checked against the text that the bucket knows it by."""
    errors = await keys.check_all()
    return tuple(
        MasterKeyStatus(
            master_key=name,
            provider=keys.provider_of(name),
            active=name == active_master_key,
            code=_code(errors[name]),
        )
        for name in keys.ids
    )


def _code(error: Exception | None) -> str | None:
    if error is None:
        return None
    return error.code if isinstance(error, CodedError) else StorageUnavailableError.code
