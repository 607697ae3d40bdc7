"""`keyturn verify`: the independent check of a project, with one key (SPEC 14, 15.2).

The key is the project's API key, or one project's admin KEK from `keyturn keys export-project`.
The check itself is in `offline.verify`, which shares no code with the workers' sweeps.
"""

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.progress import SpinnerColumn, TextColumn

from keyturn.crypto.keys import kek_id, user_kek
from keyturn.errors import MalformedEvidenceError
from keyturn.identifiers import format_time
from keyturn.project_keks import ProjectKeks, parse_project_keks
from keyturn.settings import S3Settings
from keyturn_workers.cli.arguments import ApiKeyFile, AsJson, CustomerSecretFile, Project
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import print_json, print_line, print_rows, progress_display
from keyturn_workers.cli.secrets import (
    MANY_MAX_BYTES,
    read_api_key,
    read_customer_secrets,
    read_secret,
)
from keyturn_workers.cli.settings import ProjectKekSettings, ReaderSettings
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.offline.verify.object_check import VerificationKeys
from keyturn_workers.offline.verify.project_check import check_project, find_secret_ids
from keyturn_workers.offline.verify.report import VerifyReport

_COLUMNS: Final = ("s3_key", "version", "kind", "state", "code", "detail")
_SHOWN: Final = 20
_SHOWN_AS_JSON: Final = 1000
_SECRET_ID: Final = re.compile(r"[0-9a-f]{16}")


def _parse_secret_id(value: str) -> str:
    if _SECRET_ID.fullmatch(value) is None:
        raise typer.BadParameter("the id of a customer secret has 16 hex digits")
    return value


def verify(
    project: Project,
    api_key_file: ApiKeyFile = None,
    admin_kek_file: Annotated[
        Path | None,
        typer.Option(
            help="File written by `keyturn keys export-project`: check the admin wraps instead. "
            "Default: KEYTURN_PROJECT_KEK, if set."
        ),
    ] = None,
    customer_secret_file: CustomerSecretFile = None,
    customer_secret_id: Annotated[
        list[str] | None,
        typer.Option(
            parser=_parse_secret_id,
            metavar="ID",
            help="The id of a customer secret that the project had, besides those that its "
            "evidence in the bucket names; may be repeated. Only with --expect-gone.",
        ),
    ] = None,
    no_customer_key: Annotated[
        bool,
        typer.Option(
            "--no-customer-key",
            help="Assert that the project never had a customer key, if no evidence in the bucket "
            "shows it. Only with --expect-gone.",
        ),
    ] = False,
    expect_gone: Annotated[
        bool,
        typer.Option("--expect-gone", help="Exit with 0 only if the key opens nothing."),
    ] = False,
    generation: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            metavar="N",
            help="A generation at which the key was in use, if above 32; may be repeated. Hidden "
            "wraps are searched at this one too.",
        ),
    ] = None,
    kek_id_option: Annotated[
        str | None,
        typer.Option(
            "--kek-id",
            metavar="ID",
            help="Exit with 1 unless the API key has this KEK id, as evidence names it.",
        ),
    ] = None,
    allow_plaintext: Annotated[
        bool, typer.Option("--allow-plaintext", help="Accept objects that are not encrypted.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of findings to print. All are counted. Default: "
            f"{_SHOWN}, with --json {_SHOWN_AS_JSON}.",
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="How many objects to read at once.")
    ] = 32,
    as_json: AsJson = False,
) -> None:
    """Check that one key opens every object of a project.

    Lists the bucket, opens each wrap under the key, and compares it with the object's header.
    Changes nothing. Needs no keyring, no master key and no broker. Exits with 0 only if all
    objects open.

    With --expect-gone, searches every enc- value for a wrap that the key opens, whatever its
    labels say, and exits with 0 only if there is none. For a project that ever had a customer key,
    also give the secret of each (--customer-secret-file): without them, the result is undecided.
    """
    if (customer_secret_id or no_customer_key) and not expect_gone:
        raise typer.BadParameter(
            "--customer-secret-id and --no-customer-key apply only with --expect-gone"
        )
    secrets = read_customer_secrets(customer_secret_file)
    settings = S3Settings.read()
    keys = _read_keys(project, api_key_file, admin_kek_file, tuple(generation or ()))
    _check_kek_id(keys, kek_id_option)
    keys = keys.with_secrets(secrets)
    shown = limit or (_SHOWN_AS_JSON if as_json else _SHOWN)
    report = VerifyReport(
        "gone" if expect_gone else "opens",
        allow_plaintext,
        shown,
        secret_ids=set(customer_secret_id or ()),
        given_secret_ids=keys.secret_ids,
        may_lack_secret_ids=expect_gone and not customer_secret_id and not no_customer_key,
    )
    started_at = format_time(datetime.now(UTC))
    asyncio.run(_check(settings, keys, report, concurrency))
    document = {
        "project": project,
        "bucket": settings.s3_bucket,
        "key": _describe(keys),
        "started_at": started_at,
        "ended_at": format_time(datetime.now(UTC)),
        **report.document(),
    }
    _print(document, as_json=as_json)
    if not report.verified:
        raise CommandError(report.verdict)


def _read_keys(
    project: str,
    api_key_file: Path | None,
    admin_kek_file: Path | None,
    generations: tuple[int, ...],
) -> VerificationKeys:
    if api_key_file is not None and admin_kek_file is not None:
        raise typer.BadParameter("--api-key-file and --admin-kek-file cannot be used together")
    keks: ProjectKeks | None = None
    if admin_kek_file is not None:
        try:
            keks = parse_project_keks(read_secret(admin_kek_file, MANY_MAX_BYTES))
        except ValueError as exc:  # its text names the rule, never the key
            raise typer.BadParameter(f"{admin_kek_file}: {exc}") from None
    elif api_key_file is None:
        keks = ProjectKekSettings.read().project_kek
    if keks is None:
        settings = ReaderSettings.read()
        api_key = read_api_key(api_key_file, project, confirm=False).get_secret_value()
        kek = user_kek(api_key, project, settings.pepper.get_secret_value())
        return VerificationKeys(project, "user", {"": kek}, generations)
    if keks.project != project:
        raise typer.BadParameter(f"the admin KEK is that of {keks.project}, not of {project}")
    return VerificationKeys(project, "admin", keks.admin_keks, generations, keks.composites)


def _check_kek_id(keys: VerificationKeys, expected: str | None) -> None:
    """Refuse a key other than the one that evidence names: it would open nothing either."""
    if expected is None:
        return
    if keys.role != "user":
        raise typer.BadParameter("--kek-id applies only to an API key")
    actual = kek_id(keys.keks[""])
    if actual != expected:
        raise CommandError(f"this API key has the KEK id {actual}: wrong key or wrong pepper")


def _describe(keys: VerificationKeys) -> dict[str, Any]:
    if keys.role == "user":
        return {"role": "user", "kek_id": kek_id(keys.keks[""])}
    return {"role": "admin", "master_keys": list(keys.keks)}


async def _check(
    settings: S3Settings, keys: VerificationKeys, report: VerifyReport, concurrency: int
) -> None:
    columns = (SpinnerColumn(), TextColumn("{task.completed} objects"))
    with progress_display(*columns) as progress:
        task = progress.add_task("", total=None)
        async with open_bucket(settings, max_connections=concurrency + 1) as storage:
            if report.expectation == "gone":
                found, are_all = await _find_secret_ids(storage, keys.project)
                report.secret_ids |= found
                report.may_lack_secret_ids &= not are_all
            await check_project(
                storage,
                keys,
                report,
                concurrency=concurrency,
                on_checked=lambda: progress.advance(task),
            )


async def _find_secret_ids(storage: Storage, project: str) -> tuple[set[str], bool]:
    try:
        return await find_secret_ids(storage, project)
    except MalformedEvidenceError as exc:
        raise CommandError(str(exc)) from exc


def _print(document: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    if document["findings"]:
        print_rows(_COLUMNS, document["findings"])
        print_line("")
    if omitted := document["findings_omitted"]:
        note(f"{omitted} more finding{'s' * (omitted > 1)}; raise --limit to see them")
    key = document["key"]
    named = key.get("kek_id") or ", ".join(key["master_keys"])
    print_line(f"{key['role']} key {named}")
    counts = {name: number for name, number in document["counts"].items() if number}
    print_line(", ".join(f"{name} {number}" for name, number in counts.items()) or "objects 0")
    if document["verified"]:
        print_line(document["verdict"])
