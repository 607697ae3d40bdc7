"""Measures the configured bucket: `keyturn doctor`, and each worker's start (SPEC 10).

Every row is the outcome of requests just made, with real concurrent writers where a race
matters, and with the bucket's versioning as it is. Nothing is concluded from a server's name or
version. All keys are under `.keyturn/doctor/{random}/`, which is removed at the end.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn_workers.core.errors import ClockSkewError, RefusedError, StorageResponseError
from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.storage.probe import checks
from keyturn_workers.storage.probe.checks import CHECKS, Check, Needed
from keyturn_workers.storage.probe.key_checks import BY_PATH
from keyturn_workers.storage.probe.protocol import Outcome, ProbeStorage, is_not_implemented
from keyturn_workers.storage.setting_hints import with_setting

PREFIX: Final = ".keyturn/doctor/"


@dataclass(frozen=True, slots=True)
class Row:
    """The outcome of one check."""

    name: str
    needed: Needed
    ok: bool
    detail: str
    consequence: str
    undecided: bool = False
    """Not ok because requests failed at the storage: nothing is known, and a retry may differ."""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """All rows of a probe."""

    rows: Sequence[Row]
    left_behind: str | None = None
    """The prefix, if removing it failed."""

    @property
    def unsafe(self) -> Sequence[Row]:
        """The required rows that do not hold. A safe bucket has none."""
        return [row for row in self.rows if row.needed == "required" and not row.ok]

    @property
    def undecided(self) -> Sequence[Row]:
        """The undecided rows whose outcome matters to a worker."""
        return [row for row in self.rows if row.undecided and row.needed != "info"]

    @property
    def unknown(self) -> Sequence[Row]:
        """The undecided rows that stop a worker from starting if the bucket must be safe."""
        return [
            row for row in self.undecided if row.needed == "required" or row.name in checks.DECISIVE
        ]

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities that workers may rely on beyond the requirements."""
        passed = {row.name for row in self.rows if row.ok}
        order = next((row.detail for row in self.rows if row.name == checks.LISTING and row.ok), "")
        late = {checks.LATE_PUT, checks.LATE_COPY, checks.LATE_COMPLETION}
        return Capabilities(
            conditional_completion={checks.COMPLETION, checks.COMPLETION_RACE} <= passed,
            conditional_copy_destination=checks.COPY_DESTINATION in passed,
            copy_keeps_tags=checks.TAGS in passed,
            late_writes_refused=late <= passed,
            listings_show_overwrites=checks.OVERWRITES in passed,
            keys_are_paths=not {checks.BACKSLASHES, checks.BESIDE_FOLDER} <= passed,
            unlisted_names=checks.ALL_NAMES not in passed,
            lists_by_path=order == BY_PATH if order else None,
        )


async def probe(storage: ProbeStorage, *, quick: bool = False) -> ProbeReport:
    """Check everything that Keyturn relies on or works around.

    A `quick` probe checks only what a worker needs to know when it starts.

    Raises:
        StorageUnavailableError: the storage cannot be reached, or this machine's clock is wrong.
        SettingsError: the bucket does not exist, or the credentials may not write there.
    """
    prefix = f"{PREFIX}{secrets.token_hex(8)}/"
    chosen = [check for check in CHECKS if check.quick or not quick]
    await _check_access(storage, f"{prefix}access")
    left_behind = None
    try:
        rows = await asyncio.gather(
            *(_row(storage, check, f"{prefix}{at}") for at, check in enumerate(chosen))
        )
    finally:
        try:
            await storage.purge(prefix)
        except (StorageResponseError, StorageUnavailableError):
            left_behind = prefix  # reported; the outcomes matter more
    return ProbeReport(rows, left_behind)


async def _check_access(storage: ProbeStorage, key: str) -> None:
    try:
        await storage.put(key, b"", Headers({}))
    except ClockSkewError as exc:
        raise StorageUnavailableError(str(exc)) from exc  # until the clock is set
    except RefusedError as exc:
        raise SettingsError(f"cannot write below {PREFIX}: {with_setting(str(exc))}") from exc
    except StorageUnavailableError as exc:
        if exc.detail.endswith("NoSuchBucket"):
            raise SettingsError(with_setting(exc.detail)) from exc
        raise


async def _row(storage: ProbeStorage, check: Check, key: str) -> Row:
    try:
        outcome = await check.run(storage, key)
    except StorageUnavailableError as exc:
        outcome = Outcome(
            ok=False, detail=f"failed: {exc.detail}", undecided=not is_not_implemented(exc)
        )
    except StorageResponseError as exc:
        outcome = Outcome(ok=False, detail=f"failed: {exc}")
    return Row(
        check.name,
        check.needed,
        outcome.ok,
        outcome.detail,
        check.consequence,
        outcome.undecided,
    )


def as_json(report: ProbeReport) -> Sequence[Mapping[str, str | bool]]:
    """Return the rows for `keyturn doctor --json`."""
    return [
        {
            "name": row.name,
            "needed": row.needed,
            "ok": row.ok,
            "said": row.detail,
            "consequence": row.consequence,
        }
        for row in report.rows
    ]
