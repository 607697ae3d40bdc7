"""Uploads reported too early, or by another's object, with a guard taken out (SPEC 7, 8.4)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.keys.keyring import reader as reader_module
from keyturn_workers.keys.keyring.cache import Listing
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.pipeline.upload.put import exists_within_lease
from keyturn_workers.storage.clock import boottime_s
from tests.protocol.process import CACHE_S, Options, Parts
from tests.protocol.stories import begin, stop_at, stop_within, violations, without
from tests.protocol.wire import Wire

if TYPE_CHECKING:
    import pytest

    from keyturn_workers.keys.keyring.marks import Mark
    from tests.protocol.world import World

PLAINTEXT: Final = Options(unencrypted=frozenset(range(3)))
BY_LISTINGS: Final = Options(capabilities=Capabilities(listings_show_overwrites=True))
_SECOND: Final = timedelta(seconds=1)
_RULE: Final = exists_within_lease


def plaintext_that_lands_after_it_was_forbidden(world: World) -> None:
    """Within its lease: its sweep has seen every page by then, and will not return."""
    begin(world, "a", plaintext="allowed")
    world.sweep("acme", encrypt_plaintext=True)
    forbids = stop_at(world, "put", ".keyturn/keyrings/")
    world.upload("acme", "late", b"x")

    def put() -> Any:
        return next((call for call in world.calls if call.key == "acme/late"), None)

    assert world.run(until=put, hold=lambda call: call is forbids or call.key == "acme/late")
    late = put()
    world.run(hold=lambda call: call is late, seconds=1)
    world.run()


def test_plaintext_is_published_after_a_second_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(plaintext_that_lands_after_it_was_forbidden, options=PLAINTEXT) == []

    def whatever_it_is(snapshot: Any, put: Any, *, is_encrypted: bool) -> bool:
        del is_encrypted
        return _RULE(snapshot, put, is_encrypted=True)

    monkeypatch.setattr("keyturn_workers.pipeline.upload.put.exists_within_lease", whatever_it_is)
    found = violations(plaintext_that_lands_after_it_was_forbidden, options=PLAINTEXT)
    assert any("acme/late is plaintext" in what for what in found)


class _DatesBefore(Wire):
    """A front end that dates a streamed put before it is committed, or whose clock is slow."""

    async def put_stream(self, key: str, *args: Any, **how: Any) -> Any:
        early = self._server.now
        written = await self._ask(
            "put_stream", key, lambda: self._server.put_stream(key, *args, **how)
        )
        return replace(written, date=early)


def a_put_dated_before_a_rotation(world: World) -> None:
    begin(world, "a")
    world.upload("acme", "late", b"x" * 300, staged=True)
    put = stop_within(world, "put_stream", "acme/late")
    rotation = world.rotate("acme")
    without(world, put)
    assert world.ended(rotation)
    world.run()


def test_the_local_clock_bounds_a_put_whose_date_is_early(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(wire=_DatesBefore)
    assert violations(a_put_dated_before_a_rotation, parts) == []

    def by_its_date_alone(snapshot: Any, put: Any, *, is_encrypted: bool) -> bool:
        undated = replace(put, received_s=snapshot.sent_s)
        return _RULE(snapshot, undated, is_encrypted=is_encrypted)

    monkeypatch.setattr(
        "keyturn_workers.pipeline.upload.put.exists_within_lease", by_its_date_alone
    )
    found = violations(a_put_dated_before_a_rotation, parts)
    assert any("acme/late is wrapped under (1," in what for what in found)


def a_listing_whose_response_arrives_long_after_a_rotation(world: World) -> None:
    """Two projects in use, so that a listing pays; its response arrives after the rotation."""
    begin(world, "a")
    world.enroll("bob")
    world.run()
    process = world.processes[0]
    for name in ("acme", "bob"):
        world.loop.create_task(process.keyrings.read_recent(name))
    world.loop.run_until_idle()
    world.run()
    world.advance(CACHE_S + 0.5)
    for name in ("acme", "bob"):
        process.keyrings.get_cached(name)
    upload = world.upload("acme", "late", b"x" * 300, staged=True)
    (queued,) = world.ready()
    world.deliver(queued, process)
    listing = stop_at(world, "list_page")
    world.step(listing, respond=False)
    process.stalled = True
    rotation = world.rotate("acme")
    world.run(until=lambda: world.ended(rotation))
    process.stalled = False
    world.run()
    assert world.ended(upload)


class _KeepsWhatIsMarked(KeyringReader):
    """Drops no keyring when a higher mark arrives."""

    def _forget_older(self, project: str, mark: Mark) -> None:
        pass


def test_a_listing_counts_from_its_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        violations(a_listing_whose_response_arrives_long_after_a_rotation, options=BY_LISTINGS)
        == []
    )

    def of_its_answer(after: Any, last: Any, etags: Any, date: Any, sent_s: Any, *more: Any) -> Any:
        late_s = boottime_s() - sent_s
        del more
        moved = date + (_SECOND * late_s)
        return Listing(after, last, etags, moved, boottime_s(), leased=True, proves=True)

    monkeypatch.setattr(reader_module, "Listing", of_its_answer)
    story = a_listing_whose_response_arrives_long_after_a_rotation
    assert violations(story, options=BY_LISTINGS) == []  # the rotation's mark dropped the keyring
    found = violations(story, Parts(keyrings=_KeepsWhatIsMarked), BY_LISTINGS)
    assert any("acme/late is wrapped under (1," in what for what in found)


def an_object_relabeled_to_a_pending_upload(world: World) -> None:
    begin(world, "a")
    pending = world.upload("acme", "a", b"mine" * 25, staged=True)
    before = world.server.current_objects()["acme/a"]
    metadata = {**before.headers.metadata, "enc-upload": pending}
    world.server.plant("acme/a", before.body, replace(before.headers, metadata=metadata))
    world.run()
    if f".keyturn/staging/api/{pending}" not in world.server.current_objects():
        world.oracle.violated("the staged body of a refused upload is gone")


def test_an_upload_is_reported_by_its_own_object_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(an_object_relabeled_to_a_pending_upload) == []
    agreeing = SimpleNamespace(compare_digest=lambda *_: True)
    monkeypatch.setattr("keyturn_workers.pipeline.upload.existing.hmac", agreeing)
    found = violations(an_object_relabeled_to_a_pending_upload)
    assert "the staged body of a refused upload is gone" in found
    assert any("upload.stored" in what for what in found)
