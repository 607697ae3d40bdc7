"""`keyturn recover`: accept restored keyrings, or keyrings without their marks (SPEC 5.5, 14).

It shows the findings, and asks. Each request names exactly the record and the mark. If either has
changed by the time a worker reads them, nothing is done.
"""

import asyncio
import hashlib
import sys
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Final

import typer

from keyturn.identifiers import ALL_PROJECTS, keyring_s3_key
from keyturn.publisher.client import Publisher
from keyturn.publisher.requests import new_id
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import (
    AsJson,
    TimeoutS,
    validate_project,
    validate_reason,
)
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.keys import open_report_keys
from keyturn_workers.cli.output import print_rows, to_seconds
from keyturn_workers.cli.publishing import (
    print_request_rows,
    publish_row,
    request_row,
    wait_for_row,
)
from keyturn_workers.cli.reports import StatusReports, open_marks
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.keys.keyring.marks import Mark, MarkState, MarkTable
from keyturn_workers.keys.keyring.store import KEYRING_MAX_BYTES, parse_keyring
from keyturn_workers.process.settings import OperatorSettings
from keyturn_workers.reports.status.records import RECORD_ERRORS

_AT_ONCE: Final = 64
_FOUND: Final = (
    *("project", "state", "mark_serial", "mark_generation", "marked_at"),
    *("serial", "generation", "changed_at"),
)
_OUTCOME: Final = ("project", "status", "generation", "serial", "request_id", "code", "detail")
_MAX_READS: Final = 8


@dataclass(frozen=True, slots=True)
class Contradicted:
    """A keyring that its mark contradicts, as a request to recover it must name it.

    Attributes:
        state: The result of their comparison.
        found: The record, as a mark.
        changed_at: The time of the record's last write.
        mark: The highest mark, if there is one.
        marked_at: The time of the mark's publication.
    """

    project: str
    state: MarkState
    found: Mark
    changed_at: datetime | None
    mark: Mark | None
    marked_at: datetime | None


def _validate_target(value: str) -> str | None:
    return value if value == ALL_PROJECTS else validate_project(value)


def recover(
    project: Annotated[
        str,
        typer.Argument(
            help="The project id, or '*' for every project whose keyring is not the one that its "
            "mark names.",
            callback=_validate_target,
        ),
    ],
    accept_restored: Annotated[
        str,
        typer.Option(
            metavar="REASON",
            help="Accept the keyring as it is now, and record this reason in the audit trail. "
            "Do not include secrets.",
            callback=validate_reason,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    timeout_s: TimeoutS = 60,
    as_json: AsJson = False,
) -> None:
    """Accept a keyring from a backup, or one that lost its mark.

    The API key of that keyring's generation opens the project again. So first make sure that you,
    not an attacker, put it there.
    """
    rows = asyncio.run(
        _recover(
            OperatorSettings.read(),
            PublisherSettings.read(),
            project,
            accept_restored,
            timeout_s,
            yes=yes,
            as_json=as_json,
        )
    )
    print_request_rows(_OUTCOME, rows, "project", "recovered", as_json=as_json)


async def _recover(
    settings: OperatorSettings,
    publisher: PublisherSettings,
    project: str,
    reason: str,
    timeout_s: float,
    *,
    yes: bool,
    as_json: bool,
) -> list[dict[str, Any]]:
    found = await _find(settings, publisher, project)
    if found:
        _confirm(found, yes=yes, as_json=as_json)
        return await _request(publisher, found, reason, timeout_s)
    if project != ALL_PROJECTS:
        raise CommandError(f"the keyring of {project} was not rolled back: nothing to recover")
    note("no keyring was rolled back: nothing to recover")
    return []


async def _find(
    settings: OperatorSettings, publisher: PublisherSettings, project: str
) -> list[Contradicted]:
    """Return the keyrings that can be recovered.

    Raises:
        CommandError: there is none, and one project was named.
    """
    only = None if project == ALL_PROJECTS else project
    found: list[Contradicted] = []
    async with (
        open_marks(publisher, publisher.event_public_key) as marks,
        open_bucket(settings) as storage,
        open_report_keys(settings, storage, "recover") as keys,
    ):
        rows = await StatusReports(storage, keys, witness=marks).keyrings(only)
        for row in rows:
            if row.code is not None:
                reason = f"{row.code}: {row.detail}" if row.detail else row.code
                _report(only, row.project, f"has a keyring that cannot be read: {reason}")
            elif row.mark == "removed":
                removed = "has no keyring any more: restore its newest record, or use "
                _report(only, row.project, f"{removed}`keyturn enroll {row.project} --adopt`")
            elif row.mark is not None and MarkState(row.mark).is_contradicted:
                contradicted = await read_contradicted(storage, keys, marks.table, row.project)
                if contradicted is not None:
                    found.append(contradicted)
    if only is not None and not rows:
        raise CommandError(f"unknown_project: {only} has neither a keyring nor a mark")
    return found


async def read_contradicted(
    storage: Storage, keys: KekDeriver, table: MarkTable, project: str
) -> Contradicted | None:
    """Return a keyring and its mark as they are now; None if they no longer contradict.

    Raises:
        CommandError: the keyring keeps changing.
        StorageUnavailableError, StorageResponseError: it cannot be read.
    """
    for _ in range(_MAX_READS):
        since = table.received
        try:
            head, body = await storage.read(keyring_s3_key(project), max_bytes=KEYRING_MAX_BYTES)
            keyring = await parse_keyring(body, project, keys)
        except (MissingError, *RECORD_ERRORS):
            return None
        digest = hashlib.sha256(body).digest()
        found = Mark.of(keyring, digest)
        state = table.find_state(project, found, since)
        if state is None:  # a mark arrived meanwhile
            continue
        if not state.is_contradicted:
            return None
        mark, marked_at = table.find(project), table.find_date(project)
        return Contradicted(project, state, found, head.last_modified, mark, marked_at)
    raise CommandError(f"the keyring of {project} kept changing while it was read")


def _report(only: str | None, project: str, problem: str) -> None:
    """Say why a project is left out; fail if it is the named one."""
    if only is not None:
        raise CommandError(f"{project} {problem}")
    note(f"{project} {problem}")


def _confirm(found: list[Contradicted], *, yes: bool, as_json: bool) -> None:
    if not as_json:
        print_rows(_FOUND, [_row(each) for each in found])
    if yes or not sys.stdin.isatty():
        return  # `--accept-restored` confirms it, and each request names its findings
    which = found[0].project if len(found) == 1 else f"these {len(found)} projects"
    typer.confirm(f"Accept the keyring of {which} as it is now?", abort=True, err=True)


def _row(each: Contradicted) -> dict[str, Any]:
    mark, found = each.mark, each.found
    return {
        "project": each.project,
        "state": each.state.value,
        "mark_serial": mark and mark.serial,
        "mark_generation": mark and mark.generation,
        "marked_at": to_seconds(each.marked_at),
        "serial": found.serial,
        "generation": found.generation,
        "changed_at": to_seconds(each.changed_at),
    }


async def _request(
    settings: PublisherSettings, found: list[Contradicted], reason: str, timeout_s: float
) -> list[dict[str, Any]]:
    slots = asyncio.Semaphore(_AT_ONCE)
    async with Publisher.open(settings) as publisher:

        async def recover_one(each: Contradicted) -> dict[str, Any]:
            row = request_row(project=each.project, request_id=new_id())
            publish = partial(
                publisher.recover,
                each.project,
                digest=each.found.digest.hex(),
                serial=None if each.mark is None else each.mark.serial,
                mark=None if each.mark is None else each.mark.digest.hex(),
                reason=reason,
                request_id=row["request_id"],
            )
            async with slots:
                if await publish_row(row, publish):
                    event = publisher.wait(
                        row["request_id"],
                        timeout_s=timeout_s,
                        project=each.project,
                        request_type="recover.requested",
                    )
                    await wait_for_row(row, event, "recovered")
            if row["status"] == "recovered":
                row.update({name: row["event"][name] for name in ("generation", "serial")})
            return row

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(recover_one(each)) for each in found]
    return [task.result() for task in tasks]
