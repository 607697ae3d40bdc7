"""`keyturn recover`: accept keyrings that were restored, or that lost their marks (SPEC 5.5, 14).

It shows what it found, and asks. Each request names exactly that: the record and the mark. If
either has changed by the time a worker reads them, nothing is done.
"""

import asyncio
import sys
from functools import partial
from typing import Annotated, Any, Final

import typer

from keyturn.errors import CodedError
from keyturn.identifiers import ALL_PROJECTS
from keyturn.publisher import Publisher
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
from keyturn_workers.cli.output import print_rows
from keyturn_workers.cli.publishing import (
    print_request_rows,
    publish_row,
    request_row,
    wait_for_row,
)
from keyturn_workers.cli.records import MarkedKeyring, compare_keyrings, open_marks, to_seconds
from keyturn_workers.keyring import MarkState
from keyturn_workers.settings import OperatorSettings

_AT_ONCE: Final = 64
_FOUND: Final = (
    *("project", "state", "mark_serial", "mark_generation", "marked_at"),
    *("serial", "generation", "changed_at"),
)
_OUTCOME: Final = ("project", "status", "generation", "serial", "request_id", "code", "detail")


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
    """Accept a keyring that was restored from a backup, or that lost its mark.

    The API key of that keyring's generation opens the project again. So first make sure that you
    put it there, and not an attacker.
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
) -> list[MarkedKeyring]:
    """The keyrings that can be recovered.

    Raises:
        CommandError: there is none, and one project was named.
    """
    only = None if project == ALL_PROJECTS else project
    found: list[MarkedKeyring] = []
    seen = 0
    async with (
        open_marks(publisher, publisher.event_public_key) as marks,
        open_bucket(settings) as storage,
        open_report_keys(settings, storage, "recover") as keys,
    ):
        async for each in compare_keyrings(storage, keys, marks.table, only):
            seen += 1
            if isinstance(each, tuple):
                _report(only, each[0], _explain(each[1]))
            elif each.state is MarkState.REMOVED:
                removed = "has no keyring any more: restore its newest record, or use "
                _report(only, each.project, f"{removed}`keyturn enroll {each.project} --adopt`")
            elif each.state.is_contradicted:
                found.append(each)
    if only is not None and not seen:
        raise CommandError(f"unknown_project: {only} has neither a keyring nor a mark")
    return found


def _explain(error: CodedError) -> str:
    return f"has a keyring that cannot be read: {error}"


def _report(only: str | None, project: str, problem: str) -> None:
    """Say why a project is left out; fail if it is the one that was named."""
    if only is not None:
        raise CommandError(f"{project} {problem}")
    note(f"{project} {problem}")


def _confirm(found: list[MarkedKeyring], *, yes: bool, as_json: bool) -> None:
    if not as_json:
        print_rows(_FOUND, [_row(each) for each in found])
    if yes or not sys.stdin.isatty():
        return  # `--accept-restored` says it already, and each request names what was found
    which = found[0].project if len(found) == 1 else f"these {len(found)} projects"
    typer.confirm(f"Accept the keyring of {which} as it is now?", abort=True, err=True)


def _row(each: MarkedKeyring) -> dict[str, Any]:
    mark, found = each.mark, each.found
    return {
        "project": each.project,
        "state": each.state.value,
        "mark_serial": mark and mark.serial,
        "mark_generation": mark and mark.generation,
        "marked_at": to_seconds(each.marked_at),
        "serial": found and found.serial,
        "generation": found and found.generation,
        "changed_at": to_seconds(each.changed_at),
    }


async def _request(
    settings: PublisherSettings, found: list[MarkedKeyring], reason: str, timeout_s: float
) -> list[dict[str, Any]]:
    slots = asyncio.Semaphore(_AT_ONCE)
    async with Publisher.open(settings) as publisher:

        async def recover_one(each: MarkedKeyring) -> dict[str, Any]:
            row = request_row(project=each.project, request_id=new_id())
            if each.found is None:  # a removed keyring is not among them
                return row
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
