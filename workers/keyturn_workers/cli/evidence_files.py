"""Files of evidence, from the bucket or from disk (SPEC 15.1).

A bucket writer can put anything under the prefix of the evidence. So every file is bounded, and
what cannot be read as evidence stays in the list with its name: it is reported, never skipped.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer

from keyturn.errors import MalformedEvidenceError
from keyturn.evidence import MAX_EVIDENCE_BYTES, Evidence, in_chain_order, parse
from keyturn.identifiers import evidence_prefix
from keyturn.settings import S3Settings
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.errors import ArchivedError, MissingError

# Far above any real chain.
_MAX_FILES: Final = 10_000
_MAX_TOTAL_BYTES: Final = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class EvidenceFile:
    """The bytes of a file, and its name: the path, or the last part of the S3 key."""

    name: str
    envelope: bytes

    @property
    def evidence(self) -> Evidence | None:
        """What it says; None if it is not a file of evidence."""
        try:
            return parse(self.envelope)
        except MalformedEvidenceError:
            return None


async def read_bucket(settings: S3Settings, project: str) -> list[EvidenceFile]:
    """The evidence of a project in the bucket, in the order of the chain.

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
            except MissingError:  # replaced while it was listed
                continue
            except ArchivedError:
                body = b""  # it stays in the list, as no evidence
            left_bytes -= len(body)
            files.append(EvidenceFile(listed.key.removeprefix(prefix), body))
    return in_order(files)


def read_paths(paths: Sequence[Path]) -> list[EvidenceFile]:
    """The files in the order given; a folder means its `*.json` files in order of name.

    Raises:
        typer.BadParameter: one cannot be read.
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


def in_order(files: Iterable[EvidenceFile]) -> list[EvidenceFile]:
    """The files in the order of their chain, then those outside of it, then what is no evidence."""
    by_envelope: defaultdict[bytes, list[EvidenceFile]] = defaultdict(list)
    malformed = []
    for file in files:
        if file.evidence is None:
            malformed.append(file)
        else:
            by_envelope[file.envelope].append(file)
    # A file that is there twice is twice in the order too.
    envelopes = [envelope for envelope, same in by_envelope.items() for _ in same]
    ordered = [by_envelope[envelope].pop(0) for envelope in in_chain_order(envelopes)]
    return ordered + malformed
