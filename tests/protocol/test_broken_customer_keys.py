"""Customer keys with a guard taken out: each is caught, and the real ones hold (SPEC 2.6)."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import composite_kek
from keyturn_workers.core.customer_keys import CustomerKey
from keyturn_workers.core.keyring import rotate
from tests.protocol.customer_keys import CACHE_S, GIVEN, named
from tests.protocol.stories import begin, violations

if TYPE_CHECKING:
    from tests.protocol.world import World

KEY: Final = GIVEN["acme"][0]
OTHER_KEY: Final = GIVEN["acme"][1]
_WAIT_S: Final = 20


def lock(world: World, key: str = KEY, **more: Any) -> None:
    """Give acme a customer key, and let the rotation end."""
    rotation = world.rotate("acme", new_kek=False, customer_key=named(key), **more)
    world.run()
    ends: list[Any] = world.ended(rotation)
    if not any(end.type == "rotation.completed" and end.clean for end in ends):
        world.oracle.violated(f"the rotation to {key} did not end clean: {ends}")


def a_project_that_gets_a_customer_key(world: World) -> None:
    begin(world, "a")
    lock(world)
    world.upload("acme", "b", b"b" * 50)
    world.run()


def a_project_whose_keys_change(world: World) -> None:
    begin(world, "a")
    lock(world)
    world.rotate("acme")
    world.run()
    lock(world, OTHER_KEY)
    world.sweep("acme", master_key="m2")
    world.run()


@pytest.mark.parametrize("story", [a_project_that_gets_a_customer_key, a_project_whose_keys_change])
@pytest.mark.parametrize("role", ["user", "admin"])
def test_both_wraps_need_the_customer_secret(
    monkeypatch: pytest.MonkeyPatch, role: str, story: Any
) -> None:
    def of_one_role(kek: Any, secret: Any, of: Any, *rest: Any) -> Any:
        return kek if of == role else composite_kek(kek, secret, of, *rest)

    assert violations(story) == []
    monkeypatch.setattr("keyturn_workers.core.customer_keys.composite_kek", of_one_role)
    assert f"the {role} wrap of acme/a opens without the customer key" in violations(story)


def test_a_rotation_of_the_api_key_keeps_the_customer_key(monkeypatch: pytest.MonkeyPatch) -> None:
    def to_none(*args: Any, **how: Any) -> Any:
        made = rotate(*args, **how)
        if how.get("customer_key") is not None:
            return made
        return replace(made, current=replace(made.current, customer_key=None))

    module = import_module("keyturn_workers.pipeline.control.rotation")
    monkeypatch.setattr(module, "rotate", to_none)
    found = violations(a_project_whose_keys_change)
    assert "the customer key of acme changed, and no request asked for it" in found


def a_store_that_lies_and_is_put_right(world: World) -> None:
    """It gives other bytes than those that it encrypted."""
    begin(world, "a")
    lock(world)
    world.stores.moods[KEY] = "lies"
    world.advance(CACHE_S)
    upload = world.upload("acme", "b", b"b" * 50)
    world.run(seconds=_WAIT_S)
    if world.ended(upload):
        world.oracle.violated("an upload ended, and its key gave another secret")


def test_a_secret_is_compared_with_the_one_that_was_encrypted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_store_that_lies_and_is_put_right) == []
    monkeypatch.setattr(CustomerKey, "is_secret", lambda *_: True)
    found = violations(a_store_that_lies_and_is_put_right)
    assert "a wrap of acme/b does not open under any key that ever was" in found


def a_request_that_names_the_key_of_another_project(world: World) -> None:
    begin(world, "a")
    world.enroll("beta")
    world.run()
    for publisher in ("api", "other"):
        rotation = world.rotate("beta", new_kek=False, publisher=publisher, customer_key=named(KEY))
        world.run()
        ends: list[Any] = world.ended(rotation)
        if [getattr(end, "code", None) for end in ends] != ["not_permitted"]:
            world.oracle.violated(f"it was not refused: {ends}")
