"""The periodic scan marks each keyring once, and reports those that were rolled back (SPEC 5.5)."""

from __future__ import annotations

from dataclasses import replace

from structlog.testing import capture_logs

from keyturn.identifiers import keyring_s3_key
from keyturn_workers.keyring.marks import MarkWatch
from keyturn_workers.storage import Headers
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring
from tests.unit.keyturn_workers.sweep.test_periodic import Scans
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of
from tools.harness.local_keys import build_keyring


class _Rounds:
    """A bucket, its marks, and one process's rounds over it."""

    def __init__(self) -> None:
        self.witness, self.counts = FakeWitness(), list[int]()
        self.scans = Scans(watch=MarkWatch(self.witness, self.counts.append))
        self.storage = self.scans.storage

    def put(self, project: str, serial: int) -> bytes:
        body = build_keyring(replace(keyring(project), serial=serial), MASTER_KEYS)
        self.storage.plant(keyring_s3_key(project), body, Headers({}))
        return body

    async def round(self) -> list[tuple[str, str]]:
        """Look once; the projects that were logged, and as what."""
        with capture_logs() as logs:
            await self.scans.scan()
        rolled_back = [log for log in logs if log["event"] == "keyring rolled back"]
        return [(log["project"], log["state"]) for log in rolled_back]


async def test_each_keyring_of_an_earlier_release_is_marked_once() -> None:
    on = _Rounds()
    bodies = {project: on.put(project, 0) for project in ("acme", "bob")}
    assert await on.round() == []
    assert sorted(on.witness.published) == [(name, mark_of(bodies[name], name)) for name in bodies]
    assert await on.round() == []
    assert len(on.witness.published) == 2
    assert on.storage.reads == []


async def test_a_keyring_stays_unmarked_without_the_broker_and_is_marked_later() -> None:
    on = _Rounds()
    on.put("acme", 0)
    on.witness.is_current = False
    await on.round()
    assert on.witness.published == []
    on.witness.is_current = True
    await on.round()
    assert len(on.witness.published) == 1
    assert on.counts == [0, 0]


async def test_keyrings_that_were_rolled_back_removed_or_never_marked_are_reported_once() -> None:
    on = _Rounds()
    before = {project: on.put(project, 1) for project in ("acme", "bob", "carol")}
    for project, body in before.items():
        on.witness.receive(project, mark_of(body, project))
    assert await on.round() == []
    on.witness.receive("acme", mark_of(on.put("acme", 2)))
    on.storage.plant(keyring_s3_key("acme"), before["acme"], Headers({}))
    await on.storage.delete(keyring_s3_key("bob"))
    on.put("dave", 3)
    expected = [("acme", "rolled_back"), ("bob", "removed"), ("dave", "unknown")]
    assert await on.round() == expected
    # What it had read before is compared with the new mark, and not read again.
    assert on.storage.reads == [keyring_s3_key("dave")]
    assert await on.round() == []
    on.put("acme", 3)
    assert await on.round() == []
    assert on.counts == [0, 3, 3, 2]


async def test_a_keyring_that_changes_during_the_round_was_not_rolled_back() -> None:
    on = _Rounds()
    on.witness.receive("acme", mark_of(on.put("acme", 1)))

    async def rotate() -> None:
        """After the listing; the read still shows the state before."""
        on.witness.receive(
            "acme", mark_of(build_keyring(replace(keyring(), serial=2), MASTER_KEYS))
        )

    on.storage.before_next("read", rotate)
    assert await on.round() == []
    assert on.counts == [0]
