"""`keyturn evidence`: list, show, export and verify evidence (SPEC 14, 15).

`verify` is offline: it needs the files and the public event keys, and nothing else.
"""

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from keyturn.crypto import VerifyKey
from keyturn.errors import CutEvidenceError, EvidenceError, NotFoundError
from keyturn.evidence import Evidence, verify_chain
from keyturn.identifiers import is_short_name
from keyturn.settings import S3Settings, seed_from_b64
from keyturn_workers.cli import evidence_report
from keyturn_workers.cli.arguments import AsJson, Project, validate_project
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.evidence_files import EvidenceFile, in_order, read_bucket, read_paths
from keyturn_workers.cli.evidence_report import chain_rows, evidence_row
from keyturn_workers.cli.output import print_json, print_line, print_rows, print_table
from keyturn_workers.cli.settings import EvidenceSettings

app = typer.Typer(name="evidence", help="List, show, export or verify evidence.")

_MIN_DIGEST: Final = 8
_UNFOLDED: Final = ("answers", "digest")


def _verify_keys(values: Iterable[str]) -> list[VerifyKey]:
    """The public keys; several in one value are separated by commas, as in the setting."""
    parts = (part for value in values for part in value.split(","))
    return [VerifyKey.from_bytes(seed_from_b64(part)) for part in parts]


def _parse_keys(values: list[str] | None) -> list[str] | None:
    try:
        _verify_keys(values or ())
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from None
    return values


def _check_short_name(value: str | None) -> str | None:
    if value is not None and not is_short_name(value):
        raise typer.BadParameter("must have 1 to 32 characters from a-z, 0-9 and -")
    return value


PublicKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--public-key",
        metavar="BASE64",
        callback=_parse_keys,
        help="A public event key, or several separated by commas; may be repeated. The current "
        "key comes first. Default: KEYTURN_EVENT_PUBLIC_KEY.",
    ),
]


def _event_keys(values: list[str] | None) -> Sequence[VerifyKey]:
    if values:
        return _verify_keys(values)
    return EvidenceSettings.read().event_public_key


@app.command("list")
def list_evidence(project: Project, public_key: PublicKeys = None, as_json: AsJson = False) -> None:
    """List a project's evidence in the bucket, in the order of its chain."""
    keys = _event_keys(public_key)
    files = asyncio.run(read_bucket(S3Settings.read(), project))
    rows, error = chain_rows(files, keys, project)
    print_rows(evidence_report.COLUMNS, rows, unfolded=_UNFOLDED, as_json=as_json)
    if not files:
        note("the bucket has no evidence of this project")
    elif not keys:
        note("nothing was verified: use --public-key, or set KEYTURN_EVENT_PUBLIC_KEY")
    if error is not None:
        raise _refusal(error, files)


@app.command("show")
def show(
    project: Project,
    which: Annotated[
        str | None,
        typer.Argument(
            metavar="DIGEST | FILE",
            help="A file, or a digest (or its first 8 or more characters). Default: the newest.",
        ),
    ] = None,
    public_key: PublicKeys = None,
    as_json: AsJson = False,
) -> None:
    """Show one evidence file."""
    keys = _event_keys(public_key)
    if which is not None and Path(which).is_file():
        files = read_paths([Path(which)])
    else:
        files = asyncio.run(read_bucket(S3Settings.read(), project))
        files = _select(files, which)
    evidence = files[0].evidence
    if evidence is None or evidence.statement.project != project:
        raise CommandError(f"{files[0].name} is not evidence of {project}")
    row = evidence_row(files[0], _signature_state(evidence, keys))
    if as_json:
        print_json(row)
        return
    counts = row.pop("counts")
    fields = row | {f"count: {name}": number for name, number in counts.items()}
    print_table(("field", "value"), list(fields.items()), unfolded=("value",))


def _select(files: Sequence[EvidenceFile], digest: str | None) -> list[EvidenceFile]:
    known = [(file, file.evidence) for file in files]
    if digest is None:
        found = [file for file, evidence in known if evidence is not None][-1:]
    elif len(digest) < _MIN_DIGEST:
        raise typer.BadParameter(f"{digest}: no such file, and too short for a digest")
    else:
        found = [f for f, e in known if e is not None and e.digest.startswith(digest)]
    if not found:
        raise NotFoundError("the bucket has no such evidence of this project")
    return found


def _signature_state(evidence: Evidence, keys: Sequence[VerifyKey]) -> str:
    if not keys:
        return "not verified"
    try:
        evidence.verify(keys)
    except EvidenceError as exc:
        return exc.kind
    return "signature verified"


@app.command("export")
def export(
    project: Project,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder to write to; created if missing.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write a project's evidence to a folder, numbered in the order of its chain."""
    files = asyncio.run(read_bucket(S3Settings.read(), project))
    if not files:
        raise NotFoundError("the bucket has no evidence of this project")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    for evidence in filter(None, (file.evidence for file in files)):
        # By its content: a name in the bucket may be anything, also a path.
        predicate = evidence.predicate
        name = f"{len(written) + 1:05}-{predicate.generation}-{predicate.sweep_id}.json"
        _write(folder / name, evidence.envelope)
        written.append(name)
    if as_json:
        print_json({"folder": str(folder), "files": written})
    else:
        note(f"{len(written)} file{'s' * (len(written) != 1)} written to {folder}")
    if malformed := [file.name for file in files if file.evidence is None]:
        raise CommandError(f"not evidence, and not exported: {', '.join(malformed[:5])}")


def _write(path: Path, envelope: bytes) -> None:
    """Write a file; one that is there must be the same."""
    try:
        with path.open("xb") as file:
            file.write(envelope)
    except FileExistsError:
        if path.read_bytes() != envelope:
            raise CommandError(f"{path} already exists with different content") from None


@app.command("verify")
def verify(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="All evidence of one project in the order of its chain, or the folder of "
            "`keyturn evidence export`.",
        ),
    ],
    public_key: PublicKeys = None,
    project: Annotated[
        str | None,
        typer.Option(callback=validate_project, help="Required project. Default: any."),
    ] = None,
    deployment: Annotated[
        str | None,
        typer.Option(
            callback=_check_short_name,
            help="Required deployment. Default: KEYTURN_DEPLOYMENT, then any.",
        ),
    ] = None,
    newest: Annotated[
        str | None,
        typer.Option(
            metavar="DIGEST",
            help="The newest digest, from the keyring or the completion event. Without it, the "
            "last file must be signed by the current event key.",
        ),
    ] = None,
    any_order: Annotated[
        bool, typer.Option("--any-order", help="Put the files in the order of the chain first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Verify the signatures and the chain of evidence, offline.

    Needs only public event keys. Exits with 1 if a file is forged, foreign, missing, repeated,
    or not in its place.
    """
    keys = _event_keys(public_key)
    if not keys:
        raise typer.BadParameter(
            "no public event key: use --public-key or KEYTURN_EVENT_PUBLIC_KEY"
        )
    deployment = deployment or EvidenceSettings.read().deployment
    given = read_paths(files)
    given = in_order(given) if any_order else given
    try:
        chain = verify_chain(
            [file.envelope for file in given],
            keys,
            deployment=deployment,
            project=project,
            newest=newest and newest.lower(),
        )
    except EvidenceError as exc:
        raise _refusal(exc, given) from exc
    _print_verified(given, chain, newest, as_json=as_json)


def _refusal(error: EvidenceError, files: Sequence[EvidenceFile]) -> CommandError:
    """One line: the kind of the error, the file, and the reason."""
    kind = error.kind.replace("_", " ")
    if error.index is None:
        hint = "" if files or not isinstance(error, CutEvidenceError) else ": no file was found"
        return CommandError(f"evidence refused ({kind}): {error}{hint}")
    return CommandError(f"evidence refused ({kind}): {files[error.index].name}: {error}")


def _print_verified(
    files: Sequence[EvidenceFile],
    chain: Sequence[Evidence],
    newest: str | None,
    *,
    as_json: bool,
) -> None:
    rows = [evidence_row(file, "verified") for file in files]
    proves, limits = evidence_report.proofs(chain), evidence_report.limits(chain, newest)
    if as_json:
        document: dict[str, Any] = {
            "verified": True,
            "deployment": chain[-1].statement.deployment,
            "project": chain[-1].statement.project,
            "newest": None if newest is None else True,
            "digest": chain[-1].digest,
            "proves": proves,
            "does_not_prove": limits,
            "evidence": rows,
        }
        print_json(document)
        return
    print_rows(evidence_report.COLUMNS, rows, unfolded=_UNFOLDED)
    for heading, sentences in (("It proves:", proves), ("It does not prove:", limits)):
        print_line("")
        print_line(heading)
        for sentence in sentences:
            print_line(f"- {sentence}")
