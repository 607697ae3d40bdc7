"""Wraps and tags with a guard taken out: each is caught, and the real ones hold (SPEC 8.2)."""

from __future__ import annotations

import os
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from keyturn.crypto import BODY_CONTEXT, kek_id, seal, to_base64, wrap_dek
from keyturn_workers.storage import Headers
from keyturn_workers.sweep import SweepStore
from tests.protocol.process import Parts
from tests.protocol.stories import begin, stop_at, violations

if TYPE_CHECKING:
    import pytest

    from tests.protocol.world import World

# The package gives the function of the same name.
DECIDE = import_module("keyturn_workers.objects.plan_action")


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
