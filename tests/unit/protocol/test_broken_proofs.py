"""Proofs with a guard taken out: each is caught, and the real ones hold (SPEC 8.4 to 8.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from contracts.errors import NotFoundError
from contracts.names import object_key
from tests.unit.protocol.stories import begin, violations
from workers.errors import MissingError
from workers.storage import Headers
from workers.sweep import everyone, pages

if TYPE_CHECKING:
    import pytest

    from tests.unit.protocol.faults import Missing
    from tests.unit.protocol.world import World


def an_object_that_answers_404(world: World, code: Missing = "NoSuchKey") -> None:
    """It is listed, and no read finds it while the sweep looks: an old key opens it."""
    begin(world, "a", "b")
    world.server.hide("acme/a", code=code)
    rotation = world.rotate("acme")
    world.run()
    assert world.ended(rotation)
    world.server.mend()


def behind_a_proxy(world: World) -> None:
    an_object_that_answers_404(world, code="")


async def _gone(self: Any, key: str, look: Any = pages._Take._look) -> Any:
    """`_Take._look` that takes what is not found for removed."""
    try:
        return await look(self, key)
    except NotFoundError:
        return None


def _left_behind(found: list[str]) -> bool:
    return any("acme/a stands under (1," in what and "at the end of" in what for what in found)


def test_an_object_that_answers_404_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(an_object_that_answers_404) == []
    monkeypatch.setattr(pages._Take, "_look", _gone)
    assert _left_behind(violations(an_object_that_answers_404))


def test_the_404_of_a_proxy_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(behind_a_proxy) == []
    monkeypatch.setattr(pages._Take, "_look", _gone)
    # A 404 without the storage's own code is no absence, even where absence were believed.
    assert violations(behind_a_proxy) == []
    monkeypatch.setattr(
        "tests.unit.protocol.wire.error_of", lambda operation, *_: MissingError(operation)
    )
    assert _left_behind(violations(behind_a_proxy))


def an_object_that_is_removed_between_listing_and_read(world: World) -> None:
    """Past Keyturn: no sweep of it may stay unclean for that."""
    begin(world, "a", "b")
    rotation = world.rotate("acme")
    looked_at = lambda: any(  # noqa: E731
        call.op == "read_start" and call.key == "acme/a" for call in world.calls
    )
    assert world.run(until=looked_at)
    world.server._bucket.purge("acme/a")
    world.run()
    (end,) = (event for event in world.ended(rotation))
    if (end.clean, end.objects, end.failed) != (True, 1, 0):  # type: ignore[union-attr]
        world.oracle.violated(f"an object that was removed is no failure: {end}")


def test_what_a_later_listing_shows_no_more_is_gone() -> None:
    assert violations(an_object_that_is_removed_between_listing_and_read) == []


def a_keyring_that_answers_404(world: World) -> None:
    """The sweep of all lists it and cannot read it: its project stays under the old master key."""
    begin(world, "a")
    world.enroll("beta")
    world.run()
    world.server.hide(".keyturn/keyrings/acme")
    sweep = world.sweep("*", master_key="m2")
    world.run()
    (end,) = (event for event in world.ended(sweep))
    world.server.mend()
    left = world.oracle.projects["acme"].states[-1].master_key == "m1"
    if left and end.clean:  # type: ignore[union-attr]
        world.oracle.violated("a sweep of all is clean, and a project is under the old master key")


async def _passed_over(*_: object) -> None:
    """`Everyone._not_found` that takes a keyring which is not found for removed."""


async def _never(*_: object) -> bool:
    return False


def test_a_keyring_that_answers_404_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_keyring_that_answers_404) == []
    monkeypatch.setattr(everyone.Everyone, "_not_found", _passed_over)
    # The last listing before the end is a guard of its own.
    assert violations(a_keyring_that_answers_404) == []
    monkeypatch.setattr(everyone.Everyone, "_is_listed", _never)
    found = violations(a_keyring_that_answers_404)
    assert found == ["a sweep of all is clean, and a project is under the old master key"]


def an_object_of_ours_under_a_foreign_name(world: World) -> None:
    """A v1 object that another program moved to `a//b`, wraps and all: no sweep can rewrap it."""
    begin(world, "a")
    stored = world.server.standing()["acme/a"]
    own = {n: v for n, v in stored.headers.metadata.items() if n.startswith("enc-")}
    world.server.plant(object_key("acme", "a//b"), stored.body, Headers(own))
    world.oracle.foreign.add("acme/a//b")
    rotation = world.rotate("acme")
    world.run()
    (end,) = (event for event in world.ended(rotation))
    if end.clean:  # type: ignore[union-attr]
        world.oracle.violated("clean beside wraps that an old key opens")


async def _whatever_it_is(*_: object) -> None:
    """`_Take._foreign_error` of a sweep that leaves foreign names alone."""


def test_a_foreign_name_with_wraps_is_no_clean_end(monkeypatch: pytest.MonkeyPatch) -> None:
    story = an_object_of_ours_under_a_foreign_name
    assert violations(story, settle=False) == []
    monkeypatch.setattr(pages._Take, "_foreign_error", _whatever_it_is)
    found = violations(story, settle=False)
    assert found == ["clean beside wraps that an old key opens"]
