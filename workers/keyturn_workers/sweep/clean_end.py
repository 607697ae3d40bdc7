"""What a clean end says as evidence, and the end that evidence says (SPEC 8.6, 15.1). Pure."""

from dataclasses import replace

from keyturn.evidence import Evidence, EvidenceCounts, Predicate, Statement, keys_before
from keyturn.identifiers import format_time, parse_time
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import KeptEnvelope, Plan


def has_all_dates(plan: Plan) -> bool:
    """Whether it is known when each page was proven: workers of 0.6 did not record it."""
    return plan.dated_pages == plan.next_page


def statement_of(
    plan: Plan,
    deployment: str,
    *,
    previous: str | None,
    previous_evidence: Evidence | None,
    key_id: str,
    held: frozenset[str],
    late_writes_refused: bool,
    version: str,
) -> Statement:
    """What the evidence of a clean end says.

    Args:
        plan: The sweep. Every page is proven, and it has the dates of all.
        deployment: The name of the installation.
        previous: The digest of the project's newest evidence, by its keyring.
        previous_evidence: That evidence; None if there is none, or if its file is lost.
        key_id: The id of the event key that signs.
        held: The ids of the event keys that may sign after it.
        late_writes_refused: Whether the storage refuses writes that arrive after their lease.
        version: The version of Keyturn.
    """
    origin = next((origin for origin in plan.origins if origin is not None), None)
    predicate = Predicate(
        sweep_id=plan.ask.sweep_id,
        kind=plan.ask.kind,
        publisher=None if origin is None else origin.publisher,
        request=None if origin is None else origin.request,
        generation=plan.state.generation,
        kek_id=plan.state.kek_id,
        master_key=plan.state.master_key,
        turned_at=format_time(plan.turned_at),
        proven_from=format_time(plan.proven_from or plan.turned_at),
        proven_to=format_time(plan.proven_to or plan.turned_at),
        lease_s=plan.lease_s or 0,  # each step sets it; 0 is refused
        late_writes_refused=late_writes_refused,
        counts=EvidenceCounts.model_validate({**plan.counts.to_json(), "clean": True}),
        pages=plan.dated_pages,
        version=version,
        event_keys=keys_before(previous_evidence, key_id, held),
        previous=previous,
    )
    return Statement(deployment, plan.ask.project, predicate)


def end_with(plan: Plan, kept: KeptEnvelope, evidence: Evidence) -> Plan:
    """The plan as it ends with its kept evidence, whatever became of it since.

    A worker may have died after the keyring named the evidence, and the sweep may have begun
    another round since. The end is what was proven then.
    """
    predicate = evidence.predicate
    counts = Counts(**predicate.counts.model_dump(exclude={"clean"}))
    return replace(
        plan,
        state=kept.state,
        turned_at=parse_time(predicate.turned_at),
        live=(),
        proven=counts.without_writes(),
        written=counts.writes(),
        late_writes_refused=predicate.late_writes_refused,
        evidence=evidence.digest,
    )
