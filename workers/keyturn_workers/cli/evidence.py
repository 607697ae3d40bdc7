"""`keyturn evidence`: list, show, export and verify evidence (SPEC 14, 15).

`verify` is offline: it needs only the files and the public event keys.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from keyturn.crypto.signatures import VerifyKey
from keyturn.errors import CutEvidenceError, EvidenceError, MalformedEvidenceError, NotFoundError
from keyturn.evidence.chain import in_chain_order, verify_chain
from keyturn.evidence.envelope import MAX_EVIDENCE_BYTES, Evidence, parse
from keyturn.evidence.statement import ErasurePredicate, Predicate
from keyturn.identifiers import evidence_prefix
from keyturn.settings import S3Settings, seed_from_b64
from keyturn_workers.cli.arguments import (
    AsJson,
    AsJsonText,
    Project,
    validate_project,
    validate_short_name,
)
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import (
    command_group,
    print_json,
    print_line,
    print_rows,
    print_table,
    shown_time,
)
from keyturn_workers.cli.settings import EvidenceSettings
from keyturn_workers.core.errors import ArchivedError, MissingError
from keyturn_workers.core.wording import plural

COLUMNS: Final = (
    *("proven_to", "generation", "kind", "answers", "objects", "rewrapped", "state", "digest"),
)
_MAX_SHOWN: Final = 3
_UNKNOWN: Final = "not verified"
_UNPROVEN: Final = "unproven"
_VERIFIED: Final = "verified"
_SIGNED: Final = "signature verified"
app = command_group("evidence", "List, show, export or verify evidence.")
_MIN_DIGEST: Final = 8

# Far above any real chain.
_MAX_FILES: Final = 10_000
_MAX_TOTAL_BYTES: Final = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class EvidenceFile:
    """A file's bytes and its name: the path, or the last part of the S3 key."""

    name: str
    envelope: bytes

    @property
    def evidence(self) -> Evidence | None:
        """The parsed evidence; None if the file is not evidence."""
        try:
            return parse(self.envelope)
        except MalformedEvidenceError:
            return None


async def read_bucket(
    settings: S3Settings, project: str, keys: Sequence[VerifyKey] = ()
) -> list[EvidenceFile]:
    """Return the evidence of a project in the bucket, ordered by `in_order`.

    Raises:
        CommandError: there are too many files for any real chain.
    """
    prefix = evidence_prefix(project)
    files: list[EvidenceFile] = []
    left_bytes = _MAX_TOTAL_BYTES
    async with open_bucket(settings, max_connections=2) as storage:
        async for listed in storage.list(prefix, limit=_MAX_FILES + 1):
            if len(files) == _MAX_FILES or left_bytes < 0:
                raise CommandError(f"too many files under {prefix}")
            try:
                _, body = await storage.read(listed.key, max_bytes=MAX_EVIDENCE_BYTES + 1)
            except MissingError:  # replaced during the listing
                continue
            except ArchivedError:
                body = b""  # it remains in the list, as no evidence
            left_bytes -= len(body)
            files.append(EvidenceFile(listed.key.removeprefix(prefix), body))
    return in_order(files, project, keys)


def read_paths(paths: Sequence[Path]) -> list[EvidenceFile]:
    """Return the files in the given order; a folder means its `*.json` files in order of name.

    Raises:
        typer.BadParameter: a file cannot be read.
    """
    files = []
    for path in paths:
        if path.is_dir():
            files += [_read(each) for each in sorted(path.glob("*.json"))]
        else:
            files.append(_read(path))
    return files


def _read(path: Path) -> EvidenceFile:
    try:
        with path.open("rb") as file:
            return EvidenceFile(str(path), file.read(MAX_EVIDENCE_BYTES + 1))
    except OSError as exc:
        raise typer.BadParameter(f"{path}: {exc.strerror}") from None


def in_order(
    files: Iterable[EvidenceFile], project: str | None = None, keys: Sequence[VerifyKey] = ()
) -> list[EvidenceFile]:
    """Return the files in the order of their chain, then evidence outside it, then other files.

    A bucket writer can plant a file that claims any place in the chain. So genuine files come
    first: a foreign or forged one could otherwise hide all files behind it. `project` and `keys`
    (public event keys) decide what is genuine, if known.
    """
    by_envelope: defaultdict[bytes, list[EvidenceFile]] = defaultdict(list)
    malformed = []
    for file in sorted(files, key=lambda file: not _is_genuine(file, project, keys)):
        if file.evidence is None:
            malformed.append(file)
        else:
            by_envelope[file.envelope].append(file)
    # A duplicate file is duplicated in the order, too.
    envelopes = [envelope for envelope, same in by_envelope.items() for _ in same]
    ordered = [by_envelope[envelope].pop(0) for envelope in in_chain_order(envelopes)]
    return ordered + malformed


def _is_genuine(file: EvidenceFile, project: str | None, keys: Sequence[VerifyKey]) -> bool:
    """Return whether a file is, as far as known, this project's evidence by one of the keys."""
    evidence = file.evidence
    if evidence is None or project not in (None, evidence.statement.project):
        return False
    return not keys or _signature_state(evidence, keys) == _SIGNED


def evidence_row(file: EvidenceFile, state: str) -> dict[str, Any]:
    """Return the row of a file: its statement, and the state of its place in the chain."""
    evidence = file.evidence
    if evidence is None:
        return {"file": file.name, "state": state}
    predicate = evidence.predicate.model_dump(mode="json")
    common = {
        "file": file.name,
        "digest": evidence.digest,
        "state": state,
        "signed_by": evidence.key_id,
        "deployment": evidence.statement.deployment,
        "project": evidence.statement.project,
        **predicate,
    }
    if isinstance(evidence.predicate, ErasurePredicate):
        at, answers = evidence.predicate.at, evidence.predicate.id
        return common | {"kind": "erasure", "proven_to": at, "answers": answers}
    counts = common.pop("counts")
    return common | {
        "answers": _answers(evidence.predicate),
        "objects": counts["objects"],
        "rewrapped": counts["rewrapped"],
        "counts": counts,
    }


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row for a table, with as much of the digest as `evidence show` needs."""
    if "digest" not in row:
        return row
    return row | {"digest": row["digest"][:16], "proven_to": shown_time(row["proven_to"])}


def _answers(predicate: Predicate) -> str:
    """Return the rotations and sweeps that a proof answers."""
    ids = [origin.id for origin in predicate.origins[:_MAX_SHOWN]]
    more = predicate.origin_count - len(ids)
    return ", ".join(ids) + (f" and {more} more" if more > 0 else "")


def chain_rows(
    files: Sequence[EvidenceFile], keys: Sequence[VerifyKey], project: str
) -> tuple[list[dict[str, Any]], EvidenceError | None]:
    """Return a row for each file in the order of the chain, and the first error in it.

    `state` is `verified`, the kind of the error, `unproven` after that error, or `not verified`
    without any key.
    """
    if not keys:
        states = [_UNKNOWN if file.evidence else "malformed" for file in files]
        return [evidence_row(*pair) for pair in zip(files, states, strict=True)], None
    verified, error = _verified_part([file.envelope for file in files], keys, project)
    states = [_VERIFIED] * verified + [_UNPROVEN] * (len(files) - verified)
    if error is not None and files:
        states[verified] = error.kind
    return [evidence_row(*pair) for pair in zip(files, states, strict=True)], error


def _verified_part(
    envelopes: Sequence[bytes], keys: Sequence[VerifyKey], project: str
) -> tuple[int, EvidenceError | None]:
    """Return how many files from the first one on verify, and the error of the next one."""
    error: EvidenceError | None = None
    while envelopes:
        try:
            verify_chain(envelopes, keys, project=project)
        except EvidenceError as exc:
            # A chain is checked for one kind of error after the other: an earlier file may have
            # another error.
            error = exc
            envelopes = envelopes[: exc.index or 0]
        else:
            break
    return len(envelopes), error


def proofs(chain: Sequence[Evidence]) -> list[str]:
    """Return what a verified chain proves, a sentence each."""
    newest = chain[-1]
    last, project = newest.predicate, newest.statement.project
    if isinstance(last, ErasurePredicate):
        return _erasure_proofs(newest, last, chain)
    counts = last.counts
    number, deployment = plural(counts.current, "encrypted object"), newest.statement.deployment
    state = f"generation {last.generation} (KEK id {last.kek_id}) and master key {last.master_key}"
    sentences = [
        f"At {last.proven_to}, each of the {number} of {project} was wrapped under {state}.",
        "None was left under an earlier key of the project, or under another master key.",
        f"The deployment {deployment} states this: its event key {newest.key_id} signed it.",
    ]
    if (key := last.customer_key) is not None:
        sentences.append(
            f"Each of these wraps also needs the customer secret {key.secret_id}, which only "
            f"{key.store}/{key.key} decrypts."
        )
    if counts.deleted:
        sentences.append(f"{plural(counts.deleted, 'deleted object')} had left a tombstone.")
    return sentences


def _erasure_proofs(
    newest: Evidence, last: ErasurePredicate, chain: Sequence[Evidence]
) -> list[str]:
    project, before = newest.statement.project, {each.digest: each for each in chain}
    proven = None if last.proven_by is None else before[last.proven_by].predicate.at
    sentences = [
        f"At {key.answered_at}, {key.store} said of the key {key.key}: "
        f"{key.answer.replace('_', ' ')}. It encrypted the secret {key.secret_id}, without which "
        f"no wrap of {_generations(key.generations)} opens."
        for key in last.keys
    ]
    if proven is None:
        sentences.append(f"{project} never had an object whose wraps need none of these secrets.")
    else:
        sentences.append(
            f"At {proven}, each encrypted object of {project} was wrapped under such a secret."
        )
    deployment = newest.statement.deployment
    return [
        *sentences,
        f"The deployment {deployment} states this: its event key {newest.key_id} signed it.",
    ]


def _generations(numbers: Sequence[int]) -> str:
    noun = "generation" if len(numbers) == 1 else "generations"
    return f"{noun} {', '.join(map(str, numbers))}"


def limits(chain: Sequence[Evidence], newest: str | None) -> list[str]:
    """Return what a verified chain does not prove, a sentence each."""
    last = chain[-1].predicate
    sentences = []
    if newest is None:
        sentences.append(
            "That this is the newest evidence: the keyring (`keyturn status`) and the completion "
            "event name the newest digest; check it with --newest."
        )
    if isinstance(last, ErasurePredicate):
        return sentences + last.not_shown
    if not last.late_writes_refused:
        sentences.append(
            "That there were no late writes: this storage accepts writes after their lease, or its "
            "clocks contradicted each other."
        )
    if number := last.counts.plaintext:
        verb = "is" if number == 1 else "are"
        sentences.append(f"That every object is encrypted: {number} {verb} plaintext.")
    sentences.append(
        "That no one kept a wrap of an earlier key elsewhere: in pieces, in another encoding or "
        "object, or outside the bucket."
    )
    sentences.append(
        f"That nothing has changed since {last.proven_to}: `keyturn verify` checks the bucket "
        "itself."
    )
    return sentences


def _parse_keys(text: str) -> list[VerifyKey]:
    """Return one public key, or several separated by commas, as in the setting."""
    try:
        return [VerifyKey.from_bytes(seed_from_b64(part)) for part in text.split(",")]
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from None


PublicKeys = Annotated[
    list[Any] | None,
    typer.Option(
        "--public-key",
        metavar="BASE64",
        parser=_parse_keys,
        help="A public event key, or several separated by commas; may be repeated. The current "
        "key comes first. Default: KEYTURN_EVENT_PUBLIC_KEY.",
    ),
]


def _event_keys(options: list[list[VerifyKey]] | None) -> Sequence[VerifyKey]:
    if options:
        return [key for keys in options for key in keys]
    return EvidenceSettings.read().event_public_key


@app.command("list")
def list_evidence(project: Project, public_key: PublicKeys = None, as_json: AsJson = False) -> None:
    """List a project's evidence, in the order of its chain."""
    keys = _event_keys(public_key)
    files = asyncio.run(read_bucket(S3Settings.read(), project, keys))
    rows, error = chain_rows(files, keys, project)
    print_rows(COLUMNS, rows if as_json else [_short(row) for row in rows], as_json=as_json)
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
        files = asyncio.run(read_bucket(S3Settings.read(), project, keys))
        if which is None and (planted := [f for f in files if not _is_genuine(f, project, keys)]):
            note(f"not of {project}, or not signed by a given key: {planted[0].name}")
            files = [file for file in files if file not in planted]
        files = _select(files, which)
    evidence = files[0].evidence
    if evidence is None or evidence.statement.project != project:
        raise CommandError(f"{files[0].name} is not evidence of {project}")
    row = evidence_row(files[0], _signature_state(evidence, keys))
    if as_json:
        print_json(row)
        return
    row.pop("origins", None)  # `answers` has their ids
    fields = row | row.pop("counts", {})
    print_table(("field", "value"), list(fields.items()))


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
        return _UNKNOWN
    try:
        evidence.verify(keys)
    except EvidenceError as exc:
        return exc.kind
    return _SIGNED


@app.command("export")
def export(
    project: Project,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder to write to; created if missing.")
    ],
    as_json: AsJsonText = False,
) -> None:
    """Write a project's evidence to a folder.

    The files are numbered in the order of the chain.
    """
    files = asyncio.run(read_bucket(S3Settings.read(), project, _event_keys(None)))
    if not files:
        raise NotFoundError("the bucket has no evidence of this project")
    folder.mkdir(parents=True, exist_ok=True)
    written: list[str] = []
    others: list[str] = []
    for file in files:
        evidence = file.evidence
        if evidence is None or evidence.statement.project != project:
            others.append(file.name)
            continue
        # Named by its content: its name in the bucket may be anything, even a path.
        predicate = evidence.predicate
        name = f"{len(written) + 1:05}-{predicate.generation}-{predicate.id}.json"
        _write(folder / name, evidence.envelope)
        written.append(name)
    if as_json:
        print_json({"folder": str(folder), "files": written})
    else:
        note(f"{len(written)} file{'s' * (len(written) != 1)} written to {folder}")
    if others:
        names = ", ".join(others[:5])
        raise CommandError(f"not evidence of {project}, and not exported: {names}")


def _write(path: Path, envelope: bytes) -> None:
    """Write a file; an existing one must be the same."""
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
            callback=validate_short_name,
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
    given = in_order(given, project, keys) if any_order else given
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
    """Return one line: the kind of the error, the file, and the reason."""
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
    proves, does_not = proofs(chain), limits(chain, newest)
    if as_json:
        document: dict[str, Any] = {
            "verified": True,
            "deployment": chain[-1].statement.deployment,
            "project": chain[-1].statement.project,
            "newest": None if newest is None else True,
            "digest": chain[-1].digest,
            "proves": proves,
            "does_not_prove": does_not,
            "evidence": rows,
        }
        print_json(document)
        return
    print_rows(COLUMNS, [_short(row) for row in rows])
    for heading, sentences in (("It proves:", proves), ("It does not prove:", does_not)):
        print_line("")
        print_line(heading)
        for sentence in sentences:
            print_line(f"- {sentence}")
