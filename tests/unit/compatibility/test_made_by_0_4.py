"""What 0.4 left in the bucket and in the stream of events is read as before (SPEC 5, 6.7, 8.5).

`made_by_0_4.json` holds the bytes as that release wrote them, sealed under a test's master key.
None of them has a field of revision 2.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Final

from keyturn.crypto import Secret
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import Event, encode, parse_event
from keyturn.publisher.event_matcher import EventMatcher
from keyturn_workers.storage import Headers
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import AllPlan, Plan
from keyturn_workers.sweep.sweep_store import SweepStore
from keyturn_workers.testing.memory_storage import MemoryStorage
from tools.harness.local_keys import build_keyring, operator_keys, parse_keyring

_MADE: Final[dict[str, Any]] = json.loads((Path(__file__).parent / "made_by_0_4.json").read_text())
_MASTER_KEYS: Final = {
    name: Secret(base64.b64decode(key)) for name, key in _MADE["master_keys"].items()
}
_SWEEP_ID: Final = "2f6c9a0e-0000-4000-8000-000000000001"


async def _bucket() -> tuple[MemoryStorage, SweepStore]:
    storage = MemoryStorage()
    for key, body in _MADE["records"].items():
        await storage.put(key, body.encode(), Headers({}))
    return storage, SweepStore(storage, operator_keys(_MASTER_KEYS))


def _event(event_type: str) -> Event:
    return parse_event(_MADE["events"][event_type].encode())


def test_a_keyring_lacks_what_revision_2_adds() -> None:
    keyring = parse_keyring(_MADE["records"][keyring_s3_key("acme")].encode(), "acme", _MASTER_KEYS)
    assert (keyring.current.generation, keyring.current.rotation_id) == (2, _SWEEP_ID)
    assert (keyring.lease_s, keyring.publisher, keyring.request, keyring.evidence) == (None,) * 4
    assert keyring.history[0].kek is not None
    assert keyring.plaintext_allowed


def test_a_keyring_that_is_written_again_keeps_all_that_it_had() -> None:
    before = parse_keyring(_MADE["records"][keyring_s3_key("acme")].encode(), "acme", _MASTER_KEYS)
    assert parse_keyring(build_keyring(before, _MASTER_KEYS), "acme", _MASTER_KEYS) == before


async def test_a_sweep_under_way_goes_on_from_its_record() -> None:
    _, store = await _bucket()
    standing = await store.read(_SWEEP_ID, "acme")
    plan = standing.plan
    assert isinstance(plan, Plan)
    assert (plan.status, plan.step, plan.written) == ("running", 4, Counts(rewrapped=3))
    # Its requester is unknown: its completion is published once, and names no request.
    assert plan.origins == (None,)
    assert (plan.successor, plan.lease_s, plan.late_writes_refused) == (None, None, None)
    results = await store.results(plan)
    # A result of 0.4 does not say that its date proves anything: its page is looked at again.
    assert [(page, result.changed, result.proves) for page, result in results.items()] == [
        (0, 0, False)
    ]
    assert await store.change(plan, standing.etag, standing.master_key)


async def test_a_sweep_of_all_under_way_goes_on_from_its_record() -> None:
    _, store = await _bucket()
    plan = (await store.read_all(_SWEEP_ID)).plan
    assert isinstance(plan, AllPlan)
    assert (plan.live, plan.step, plan.origins) == (("acme",), 2, (None,))
    ended = await store.read_part_result(_SWEEP_ID, "acme")
    assert ended is not None
    assert ended.clean


def test_every_event_is_read_and_names_no_request() -> None:
    for event_type in _MADE["events"]:
        event = _event(event_type)
        assert (event.type, event.origin) == (event_type, None)
        assert json.loads(encode(event)) == json.loads(_MADE["events"][event_type])


def test_only_reports_of_sweeps_are_believed_without_an_origin() -> None:
    def matches(request_type: Any, event_type: str) -> bool:
        matcher = EventMatcher(
            publisher="api",
            project="acme",
            request_type=request_type,
            request_id=_SWEEP_ID,
        )
        return matcher.matches(_event(event_type))

    assert matches("rotation.requested", "rotation.completed")
    assert matches("rotation.requested", "sweep.progressed")
    # An old answer could be published again by anyone who may write to the broker.
    assert not matches("upload.requested", "upload.stored")
    assert not matches("upload.requested", "upload.rejected")
