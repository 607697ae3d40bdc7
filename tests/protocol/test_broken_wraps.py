"""Wraps and tags with a guard taken out: each is caught, and the real ones hold (SPEC 8.2)."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from keyturn.crypto import BODY_CONTEXT, kek_id, seal, to_base64, wrap_dek
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.pipeline.sweep.page import restore_noted_tags
from tests.protocol.process import CACHE_S, Parts
from tests.protocol.stories import BelievesAll, begin, hint, is_page, stop_at, violations

if TYPE_CHECKING:
    import pytest

    from tests.protocol.world import World

# The package gives the function of the same name.
DECIDE = import_module("keyturn_workers.core.plan_action")
UNWRAP = import_module("keyturn_workers.core.wraps")
RECONCILE = import_module("keyturn_workers.pipeline.objects.apply")
KEYRING = ".keyturn/keyrings/acme.json"
TAGS = {"team": "legal"}


def a_user_wrap_of_another_dek(world: World) -> None:
    """A holder of the API key with write access to the bucket wraps a DEK of their own."""
    begin(world, "a")
    kek = world.oracle.projects["acme"].keks[1]
    about = {"algorithm": "Cobblestone-256", "project": "acme", "object_key": "x", "generation": 1}
    wrap = wrap_dek(kek, "user", dek=os.urandom(32), **about)  # type: ignore[arg-type]
    metadata = {
        "enc-algo": "Cobblestone-256",
        "enc-dek-user": to_base64(wrap),
        "enc-dek-admin": to_base64(bytes(104)),
        "enc-kek-user": f"1:{kek_id(kek)}",
        "enc-kek-admin": "m1",
    }
    body = seal(os.urandom(32), BODY_CONTEXT, b"of another DEK")
    world.server.plant("acme/x", body, Headers(metadata))
    sweep = world.sweep("acme")
    world.run()
    end: Any = world.ended(sweep)[0]
    if end.clean:
        world.oracle.violated("a sweep was clean over it")


def test_a_dek_is_checked_against_the_header_before_it_is_wrapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_user_wrap_of_another_dek, settle=False) == []
    monkeypatch.setattr(DECIDE, "check_header", lambda *_: None)
    found = violations(a_user_wrap_of_another_dek, settle=False)
    assert "the body of acme/x does not commit to its DEK" in found


def a_master_key_that_is_rotated(world: World) -> None:
    begin(world, "a")
    world.sweep("acme", master_key="m2")
    world.run()


def _user_wrap_is_current(wraps: Any, admin: Any, user: Any, desired: Any) -> bool:
    del wraps, admin
    return user is not None and user.generation == desired.generation


def test_both_wraps_are_brought_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_master_key_that_is_rotated) == []
    monkeypatch.setattr(DECIDE, "is_current", _user_wrap_is_current)
    found = violations(a_master_key_that_is_rotated)
    assert any("'m1') at the end of a sweep of acme, after a clean" in what for what in found)


def labels_that_are_ahead_of_their_wraps(world: World) -> None:
    begin(world, "a")
    world.rotate("acme")
    world.run(until=lambda: len(world.oracle.projects["acme"].states) > 1)
    now, stored = world.oracle.projects["acme"].states[-1], world.server.current_objects()["acme/a"]
    labeled = {"enc-kek-user": f"{now.generation}:{now.kek_id}", "enc-kek-admin": now.master_key}
    metadata = {**stored.headers.metadata, **labeled}
    world.server.plant("acme/a", stored.body, replace(stored.headers, metadata=metadata))
    world.run()


def _labels_say_so(wraps: Any, admin: Any, user: Any, desired: Any) -> bool:
    del admin, user
    expected = (desired.generation, desired.kek_id, desired.master_key)
    return bool((wraps.generation, wraps.kek_id, wraps.master_key) == expected)


def test_wraps_are_opened_whatever_their_labels_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(labels_that_are_ahead_of_their_wraps) == []
    monkeypatch.setattr(DECIDE, "is_current", _labels_say_so)
    found = violations(labels_that_are_ahead_of_their_wraps)
    assert any("acme/a is wrapped under (1," in what and "at the end of" in what for what in found)


def a_worker_that_dies_before_it_puts_tags_back(world: World) -> None:
    begin(world, "a")
    world.server._bucket.change_tags("acme/a", {"team": "legal"})
    world.rotate("acme")
    tags = stop_at(world, "write_tags")
    world.crash(tags.sender, arriving=lambda _: False)
    world.run()
    if world.server.current_objects()["acme/a"].tags != {"team": "legal"}:
        world.oracle.violated("the tags are gone")


class _NotesNothing(SweepStore):
    async def add_tag_note(self, *_args: Any, **_more: Any) -> str:
        return ""


def test_tags_are_noted_before_a_copy_drops_them() -> None:
    assert violations(a_worker_that_dies_before_it_puts_tags_back) == []
    broken = Parts(store=_NotesNothing)
    assert violations(a_worker_that_dies_before_it_puts_tags_back, broken) == ["the tags are gone"]


CLEAN_OVER_OTHERS = "a rotation was clean over objects of another keyring"
WRAPPED_FOR_THIEF = "an object of the owner was wrapped for the thief"


def an_old_keyring_that_is_put_back_and_rotated(world: World) -> None:
    """The thief of a retired API key makes the owner's generation anew, under a key of their own.

    No admin wrap of the owner is above that keyring.
    """
    begin(world, "a")
    old = world.server.current_objects()[KEYRING]
    world.rotate("acme")
    world.run()
    owners = world.server.current_objects()["acme/a"]
    world.server.plant(KEYRING, old.body, old.headers)
    world.advance(CACHE_S + 1)
    rotation = world.rotate("acme", kek=b"t" * 32)
    world.run()
    ends: list[Any] = world.ended(rotation)
    if any(end.type == "rotation.completed" and end.clean for end in ends):
        world.oracle.violated(CLEAN_OVER_OTHERS)
    if world.server.current_objects()["acme/a"].headers != owners.headers:
        world.oracle.violated(WRAPPED_FOR_THIEF)


def _open_wraps_one_by_one(*args: Any) -> Any:
    return replace(UNWRAP.open_wraps(*args), disagree=False)


def test_the_admin_wrap_vouches_for_no_object_of_another_keyring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second line: workers that compare no keyring with its mark."""
    story = an_old_keyring_that_is_put_back_and_rotated
    assert violations(story) == []  # no worker uses it
    lost, parts = {CLEAN_OVER_OTHERS, WRAPPED_FOR_THIEF}, Parts(keyrings=BelievesAll)
    assert not lost & set(violations(story, parts, settle=False))
    monkeypatch.setattr(DECIDE, "open_wraps", _open_wraps_one_by_one)
    assert lost <= set(violations(story, parts, settle=False))


def a_damaged_user_wrap(world: World) -> None:
    begin(world, "a", "b")
    stored = world.server.current_objects()["acme/a"]
    world.bucket_writer.relabel("acme/a", enc_dek_user=to_base64(bytes(104)))
    ends: list[Any] = []
    for repair in (False, False, True, False):
        sweep = world.sweep("acme", repair=repair)
        world.run()
        ends += world.ended(sweep)
    if [(end.failed, end.rewrapped) for end in ends] != [(1, 0), (1, 0), (0, 1), (0, 0)]:
        world.oracle.violated("a user wrap was repaired that no one asked to repair")
    if world.server.current_objects()["acme/a"].body != stored.body:
        world.oracle.violated("the body changed")


def test_only_a_repair_replaces_a_user_wrap_that_does_not_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_damaged_user_wrap) == []
    monkeypatch.setattr(DECIDE, "open_wraps", _open_wraps_one_by_one)
    found = violations(a_damaged_user_wrap)
    assert "a user wrap was repaired that no one asked to repair" in found


def old_wraps_that_are_kept_beside_the_current_ones(world: World) -> None:
    """The thief of a retired API key hides what it opens where no reader looks."""
    begin(world, "a", "b", "c")
    stored = world.server.current_objects()
    old = {key: stored[f"acme/{key}"] for key in "abc"}
    world.rotate("acme")
    world.delete("acme", "c")
    world.run()
    hidden = {key: each.headers.metadata["enc-dek-user"] for key, each in old.items()}
    world.bucket_writer.relabel("acme/a", enc_dek_user_1=hidden["a"])
    world.bucket_writer.relabel("acme/b", enc_upload=hidden["b"])
    world.bucket_writer.relabel("acme/c", enc_dek_user=hidden["c"])
    tombstone = world.server.current_objects()["acme/c"]
    world.server.plant("acme/c", old["c"].body, tombstone.headers)
    world.sweep("acme")
    world.run()
    if world.server.current_objects()["acme/c"].body:
        world.oracle.violated("a tombstone has a body")


def test_a_clean_sweep_leaves_no_old_wrap_under_another_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = old_wraps_that_are_kept_beside_the_current_ones
    assert violations(story) == []
    monkeypatch.setattr("keyturn.metadata.unknown_names", lambda _: [])
    found = violations(story, settle=False)
    for key in "ab":
        assert f"an earlier KEK opens acme/{key} at the end of a sweep of acme" in found


def old_wraps_in_what_a_rewrap_keeps(world: World) -> None:
    """A bucket writer copies them before the rotation; an operator removes them after it."""
    begin(world, "a", "b", "c", "d")
    plain = world.server.current_objects()
    wraps = {key: plain[f"acme/{key}"].headers.metadata["enc-dek-user"] for key in "abc"}
    world.bucket_writer.relabel("acme/a", note=wraps["a"])
    b = plain["acme/b"]
    kept = replace(b.headers, restated={"cache-control": wraps["b"]})
    world.server.plant("acme/b", b.body, kept)
    world.server._bucket.change_tags("acme/c", {"note": wraps["c"]})
    rotation = world.rotate("acme")
    world.run()
    [end] = [each for each in world.ended(rotation) if each.type == "rotation.completed"]
    if (end.clean, end.counts.failed) != (False, 3):
        world.oracle.violated("a rotation did not count the objects with hidden wraps as failed")
    stored = world.server.current_objects()
    metadata = {n: v for n, v in stored["acme/a"].headers.metadata.items() if n != "note"}
    headers = replace(stored["acme/a"].headers, metadata=metadata)
    world.server.plant("acme/a", stored["acme/a"].body, headers)
    world.server.plant("acme/b", b.body, replace(stored["acme/b"].headers, restated={}))
    world.server._bucket.change_tags("acme/c", {})
    sweep = world.sweep("acme")
    world.run()
    if [getattr(end, "clean", False) for end in world.ended(sweep)] != [True]:
        world.oracle.violated("the sweep after the removal is not clean")


def test_a_clean_sweep_leaves_no_old_wrap_in_what_a_rewrap_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = old_wraps_in_what_a_rewrap_keeps
    assert violations(story) == []
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.page.check_nothing_hidden", lambda *_: None)
    found = violations(story, settle=False)
    for key in "abc":
        assert f"an earlier KEK opens acme/{key} at the end of a sweep of acme" in found


def an_old_wrap_in_a_tag_that_a_replaced_round_noted(world: World) -> None:
    """The worker dies before it puts the tag back, and another rotation replaces the round."""
    begin(world, "a")
    old = world.server.current_objects()["acme/a"].headers.metadata["enc-dek-user"]
    world.server._bucket.change_tags("acme/a", {"note": old})
    world.rotate("acme")
    tags = stop_at(world, "write_tags")
    world.crash(tags.sender, arriving=lambda _: False)
    before = {hint(each)["round"] for each in world.queue if is_page(each)}
    rotation = world.rotate("acme")
    assert world.run(
        until=lambda: {hint(each)["round"] for each in world.queue if is_page(each)} - before,
        keep=is_page,
    )
    world.run()
    if [getattr(end, "clean", None) for end in world.ended(rotation)] != [False]:
        world.oracle.violated("a rotation did not count the object with the hidden wrap as failed")


def test_a_clean_sweep_has_proven_the_objects_whose_tags_it_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = an_old_wrap_in_a_tag_that_a_replaced_round_noted
    assert violations(story, settle=False) == []

    async def forgets(*args: Any) -> list[str]:
        await restore_noted_tags(*args)
        return []

    monkeypatch.setattr("keyturn_workers.pipeline.sweep.reconciler.restore_noted_tags", forgets)
    found = violations(story, settle=False)
    assert "an earlier KEK opens acme/a at the end of a sweep of acme" in found


def an_upload_that_is_delivered_again_after_a_rotation(world: World) -> None:
    """Its object has tags, on a storage whose copies drop them."""
    begin(world, "a")
    (upload,) = [each.upload_id for each in world.events_of_type("upload.stored")]
    world.server._bucket.change_tags("acme/a", TAGS)
    world.rotate("acme")
    states = world.oracle.projects["acme"].states
    world.run(until=lambda: len(states) > 1, keep=hint)
    world.advance(CACHE_S + 1)
    world.send_again(upload)
    world.run(keep=hint, seconds=3)
    world.run()
    if world.server.current_objects()["acme/a"].tags != TAGS:
        world.oracle.violated("the tags are gone")
    if {each.generation for each in world.events_of_type("upload.stored")} != {1, 2}:
        world.oracle.violated("the upload was not finished")


def test_an_upload_copies_no_object_whose_tags_a_copy_drops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(an_upload_that_is_delivered_again_after_a_rotation) == []
    monkeypatch.setattr(RECONCILE, "tags_at_risk", lambda *_: False)
    found = violations(an_upload_that_is_delivered_again_after_a_rotation)
    assert "the tags are gone" in found
