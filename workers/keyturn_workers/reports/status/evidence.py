"""The view of one project's evidence, with its envelopes (SPEC 15.1, 16.1).

An envelope is in a report only if an event key of this process signed it, for this deployment and
project. Others are rows with a code: forged, damaged, or signed by an event key that this process
no longer holds. The reader must verify whether the files form a chain.
"""

import asyncio
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from keyturn.crypto.signatures import VerifyKey
from keyturn.errors import EvidenceError, ForeignEvidenceError, MalformedEvidenceError
from keyturn.evidence.envelope import MAX_EVIDENCE_BYTES, Evidence, digest, parse
from keyturn.identifiers import evidence_prefix, format_time, parse_evidence_name
from keyturn.messages.status import EvidenceStatus
from keyturn_workers.core.errors import ArchivedError, MissingError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import ObjectSummary
from keyturn_workers.reports.status.query import Selection, select
from keyturn_workers.reports.status.records import BATCH, Pace

MAX_FILES: Final = 10_000


class EvidenceView:
    """Reads the evidence of one deployment."""

    def __init__(
        self, storage: Storage, deployment: str, keys: Collection[VerifyKey], pace: Pace
    ) -> None:
        self._storage = storage
        self._deployment = deployment
        self._keys = keys
        self._pace = pace

    async def page(self, project: str, page: int, limit: int) -> Selection[EvidenceStatus]:
        """Return a page, in the order of the files' names.

        Raises:
            StorageUnavailableError, StorageResponseError: not all files can be read.
        """
        prefix, listed, is_cut = evidence_prefix(project), list[ObjectSummary](), False
        async for row in self._storage.list(prefix):
            if is_cut := len(listed) >= MAX_FILES:
                break
            if parse_evidence_name(row.key.removeprefix(prefix)) is not None:
                listed.append(row)
        rows: list[EvidenceStatus] = []
        chosen = listed[(page - 1) * limit : page * limit]
        for begin in range(0, len(chosen), BATCH):
            await self._pace.next_batch()
            batch = chosen[begin : begin + BATCH]
            read = await asyncio.gather(*(self._row(project, prefix, each) for each in batch))
            rows += [row for row in read if row is not None]
        selected = select(rows, 1, limit, of_all=len(listed))
        is_complete = selected.is_complete and not is_cut
        return replace(selected, total=len(listed), is_complete=is_complete)

    async def _row(self, project: str, prefix: str, listed: ObjectSummary) -> EvidenceStatus | None:
        """Return the row of one file; None if it has no name of evidence, or is gone."""
        named = parse_evidence_name(listed.key.removeprefix(prefix))
        if named is None:
            return None
        body, code, at = b"", None, format_time(listed.last_modified)
        try:
            _, body = await self._storage.read(listed.key, max_bytes=MAX_EVIDENCE_BYTES + 1)
            evidence = self._verified(body, project, named)
            at = evidence.predicate.at
        except MissingError:
            return None
        except ArchivedError:
            code = "archived_object"
        except EvidenceError as exc:
            code = exc.kind
        return EvidenceStatus(
            project=project,
            generation=named[0],
            sweep_id=named[1],
            at=at,
            digest=digest(body),
            envelope=body.decode() if code is None else None,
            code=code,
        )

    def _verified(self, envelope: bytes, project: str, named: tuple[int, str]) -> Evidence:
        evidence = parse(envelope)
        evidence.verify(self._keys)
        statement, predicate = evidence.statement, evidence.predicate
        if (statement.deployment, statement.project) != (self._deployment, project):
            raise ForeignEvidenceError("from another deployment or project")
        if (predicate.generation, predicate.id) != named:
            raise MalformedEvidenceError("at the path of another file")
        return evidence
