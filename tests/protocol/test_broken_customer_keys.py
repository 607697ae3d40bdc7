"""Customer keys with a guard taken out: each is caught, and the real ones hold (SPEC 2.6)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import composite_kek
from keyturn_workers.core.customer_keys import CustomerKey
from keyturn_workers.core.keyring import retire_old_keys, rotate
from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.keys.customer_keys.secrets import IN_WORKERS, CachedCustomerKeys
from keyturn_workers.pipeline.control.enrollment import Enroller
from keyturn_workers.pipeline.upload.uploader import Uploader
from tests.protocol.customer_keys import CACHE_S, GIVEN, named
from tests.protocol.process import CACHE_S as KEYRING_CACHE_S
from tests.protocol.process import Options, Parts
from tests.protocol.stories import begin, stop_at, violations, without
from tests.protocol.wire import BEGUN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from keyturn_workers.core.keyring import Keyring
    from tests.protocol.customer_keys import Mood
    from tests.protocol.wire import Call
    from tests.protocol.world import World

KEY: Final = GIVEN["acme"][0]
OTHER_KEY: Final = GIVEN["acme"][1]
_WAIT_S: Final = 20
REFUSES_LATE: Final = Options(capabilities=Capabilities(late_writes_refused=True))


def lock(world: World, key: str = KEY, *held: Call, **more: Any) -> None:
    """Give acme a customer key, and let the rotation end, without these requests."""
    rotation = world.rotate("acme", new_kek=False, customer_key=named(key), **more)
    without(world, *held)
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


def test_a_keyring_with_a_customer_key_is_one_that_others_do_not_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = import_module("keyturn_workers.keys.keyring.store")
    monkeypatch.setattr(module, "record_version", lambda _: 1)
    found = violations(a_project_that_gets_a_customer_key, settle=False)
    assert "the keyring of acme is of version 1" in found


def test_a_clean_end_clears_the_secrets_that_no_wrap_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_project_whose_keys_change
    assert violations(story, options=REFUSES_LATE) == []

    def of_keks_alone(keyring: Keyring, **_: Any) -> Keyring:
        return retire_old_keys(keyring, keeps_secrets=True)

    module = import_module("keyturn_workers.pipeline.sweep.reconciler")
    monkeypatch.setattr(module, "retire_old_keys", of_keks_alone)
    found = violations(story, options=REFUSES_LATE, settle=False)
    assert any(what.startswith("the keyring of acme keeps or lost a secret") for what in found)


def a_copy_that_arrives_after_the_end_of_its_secret(world: World) -> None:
    """The storage accepts it, although its lease has ended: its ETag is that of the object."""
    begin(world, "a")
    world.rotate("acme", new_kek=False, customer_key=named(KEY))
    copy = stop_at(world, "copy_onto_itself", "acme/a")
    copy.sender.stalled = True
    world.server.front_end(-1000, lambda call: call is copy)
    lock(world, OTHER_KEY, copy)
    world.crash(copy.sender)
    while copy in world.calls:
        world.step(copy)
    sweep = world.sweep("acme")
    world.run()
    (end,) = world.ended(sweep)
    if not end.clean:  # type: ignore[union-attr]
        world.oracle.violated("an object that was stored opens nowhere any more")


def test_a_clean_end_keeps_the_secrets_that_a_late_write_may_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_copy_that_arrives_after_the_end_of_its_secret
    (set_back,) = violations(story)
    assert set_back.startswith("acme/a is wrapped under (2,")
    module = import_module("keyturn_workers.pipeline.sweep.reconciler")
    monkeypatch.setattr(module, "retire_old_keys", lambda keyring, **_: retire_old_keys(keyring))
    found = violations(story, settle=False)
    assert "an object that was stored opens nowhere any more" in found
    assert "the keyring of acme lost a secret that a late write may need" in found


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


class _AsksForAnything(CachedCustomerKeys):
    """Compares no request with the settings."""

    def __init__(self, stores: Mapping[str, Any], *args: Any, **how: Any) -> None:
        super().__init__(stores, *args, **how)
        for store in stores.values():
            store.settings = SimpleNamespace(admits=lambda _: True, gives=lambda *_: True)


def test_a_project_gets_no_key_of_another() -> None:
    assert violations(a_request_that_names_the_key_of_another_project) == []
    broken = Parts(customer_keys=_AsksForAnything)
    found = violations(a_request_that_names_the_key_of_another_project, broken, settle=False)
    assert "the keyring of beta has a key that is not for it" in found


def _upload_while_the_customer_key_changes(world: World) -> None:
    """Its put begins within the lease; the storage takes the body after the clean end."""
    upload = world.upload("acme", "late", b"x" * 300, staged=True)
    put = stop_at(world, "put_stream", "acme/late", state=BEGUN)
    lock(world, OTHER_KEY, put)
    world.stores.moods[OTHER_KEY] = "disabled"
    world.advance(CACHE_S)
    world.run(seconds=_WAIT_S)
    if "acme/late" in world.server.current_objects():
        world.oracle.violated("an object was stored under keys whose end was proven before")
    world.stores.mend()
    world.run()
    if [event.type for event in world.ended(upload)] != ["upload.stored"]:
        world.oracle.violated("the upload was not stored")


def a_put_that_outlasts_the_rotation_to_a_customer_key(world: World) -> None:
    """The object would open with the master key alone."""
    begin(world, "a")
    _upload_while_the_customer_key_changes(world)


def a_put_that_outlasts_the_end_of_its_customer_secret(world: World) -> None:
    """The object would open with a secret alone that the keyring does not have any more."""
    begin(world, "a")
    lock(world)
    _upload_while_the_customer_key_changes(world)


@pytest.mark.parametrize(
    "story",
    [
        a_put_that_outlasts_the_rotation_to_a_customer_key,
        a_put_that_outlasts_the_end_of_its_customer_secret,
    ],
)
def test_a_streamed_body_ends_only_under_the_keys_of_its_time(
    monkeypatch: pytest.MonkeyPatch, story: Any
) -> None:
    async def unchecked(pieces: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for piece in pieces:
            yield piece

    assert violations(story) == []
    monkeypatch.setattr("keyturn_workers.pipeline.upload.put.check_before_last_piece", unchecked)
    found = violations(story, settle=False)
    assert "an object was stored under keys whose end was proven before" in found


class _KeepsForever(CachedCustomerKeys):
    """Forgets a secret neither by its age, nor by a refusal."""

    def _use(self, name: Any) -> Any:
        entry = self._entries.get(name)
        return super()._use(name) or (entry and entry.secret) or self._kept.get(name)

    async def _ask(self, name: Any) -> Any:
        secret = await super()._ask(name)
        self._kept[name] = secret
        return secret

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self._kept: dict[Any, Any] = {}


class _KeepsWhatIsRefused(_KeepsForever):
    """Forgets a secret by its age alone."""

    def _is_overdue(self, name: Any) -> bool:
        del name
        return False

    def _use(self, name: Any) -> Any:
        entry = self._entries.get(name)
        is_young = entry is not None and self._clock_s() - entry.sent_s < CACHE_S
        return CachedCustomerKeys._use(self, name) or (self._kept.get(name) if is_young else None)


def _upload_while(world: World, mood: Mood, after_s: float) -> None:
    """Uploads that begin so long after the key changed are stored once it gives again."""
    begin(world, "a")
    lock(world)
    world.upload("acme", "b", b"b")
    world.run()
    world.stores.moods[KEY] = mood
    for number in range(4):  # each process notices that its secret is due
        world.advance(after_s / 4)
        world.sweep("acme")
        world.run(seconds=1)
        world.upload("acme", f"c{number}", b"c")
        world.run(seconds=1)
    uploads = [world.upload("acme", f"d{number}", b"d" * 50) for number in range(3)]
    sweep = world.sweep("acme")
    world.run(seconds=_WAIT_S)
    if any(world.ended(each) for each in (*uploads, sweep)):
        world.oracle.violated("an upload or a sweep ended, and its key gave no secret")
    world.stores.mend()
    world.run()
    if not all(world.ended(each) for each in (*uploads, sweep)):
        world.oracle.violated("its key gives again, and an upload or a sweep waits")


def a_key_that_is_disabled(world: World) -> None:
    _upload_while(world, "refuses", CACHE_S * 3 / 4)


def a_store_that_is_cut_off(world: World) -> None:
    _upload_while(world, "away", CACHE_S)


TOO_LONG: Final = " was wrapped by a customer secret that was kept too long"


@pytest.mark.parametrize(
    ("story", "broken"),
    [(a_key_that_is_disabled, _KeepsWhatIsRefused), (a_store_that_is_cut_off, _KeepsForever)],
)
def test_no_secret_is_kept_too_long(story: Any, broken: type[CachedCustomerKeys]) -> None:
    assert violations(story) == []
    found = violations(story, Parts(customer_keys=broken))
    assert any(what.endswith(TOO_LONG) for what in found)


def a_store_that_hangs(world: World) -> None:
    """Nothing of acme's is answered; beta has a slot, and so has a later upload of acme's."""
    begin(world, "a")
    world.enroll("beta")
    world.run()
    lock(world)
    world.advance(CACHE_S)

    def hangs(call: Call) -> bool:
        return call.op == "decrypt"

    uploads = [world.upload("acme", f"b{number}", b"b" * 300, staged=True) for number in range(8)]
    world.sweep("acme")
    world.run(until=lambda: any(map(hangs, world.calls)), hold=hangs, seconds=_WAIT_S)
    others = [world.upload("beta", f"c{number}", b"c" * 300, staged=True) for number in range(8)]
    world.run(hold=hangs, seconds=1)
    if not all(world.ended(upload) for upload in others):
        world.oracle.violated("a store that hangs holds up another project")
    if any(world.ended(upload) for upload in uploads):
        world.oracle.violated("an upload ended without its customer secret")


class _Waits(CachedCustomerKeys):
    """Lets a delivery wait for a store, however long it takes."""

    def __init__(self, stores: Any, deployment: str, _: Any, **how: Any) -> None:
        patient = replace(IN_WORKERS, wait_s=1000, shuns_slow=False)
        super().__init__(stores, deployment, patient, **how)


class _AsksInItsPlace(Uploader):
    """Asks for the secret while it has one of a process's few places."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._places = asyncio.Semaphore(context.limits.stream_concurrency)

    async def _unlocked(self, *args: Any) -> Any:
        async with self._places:
            return await super()._unlocked(*args)


def test_a_store_that_hangs_holds_up_no_other_project() -> None:
    assert violations(a_store_that_hangs) == []
    broken = Parts(uploader=_AsksInItsPlace, customer_keys=_Waits)
    found = violations(a_store_that_hangs, broken, settle=False)
    assert found == ["a store that hangs holds up another project"]


def a_keyring_that_is_lost_and_adopted(world: World) -> None:
    """Its secret is on the stream of marks alone by then."""
    begin(world, "a")
    lock(world)
    world.bucket_writer.remove_keyring("acme")
    world.advance(KEYRING_CACHE_S + 1)
    world.enroll("acme", adopt=True)
    world.run(seconds=_WAIT_S)  # without the secret, it waits
    world.upload("acme", "b", b"b")
    world.run(seconds=_WAIT_S)


def test_a_mark_repeats_the_customer_keys_of_its_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_keyring_that_is_lost_and_adopted) == []
    monkeypatch.setattr("keyturn_workers.keys.keyring.mark_stream._marked_keys", lambda _: None)
    found = violations(a_keyring_that_is_lost_and_adopted, settle=False)
    assert "a mark of acme has other customer keys than its keyring" in found


def test_an_adoption_keeps_the_customer_key(monkeypatch: pytest.MonkeyPatch) -> None:
    async def to_none(*_: Any) -> None:
        return None

    monkeypatch.setattr(Enroller, "_customer_key", to_none)
    found = violations(a_keyring_that_is_lost_and_adopted, settle=False)
    assert "the customer key of acme changed, and no request asked for it" in found


def a_keyring_that_is_restored_and_recovered(world: World) -> None:
    """From before the project had its customer key, which the marks have."""
    begin(world, "a")
    before = world.bucket_writer.states("acme") - 1
    lock(world)
    world.upload("acme", "b", b"b")
    world.run()
    world.bucket_writer.roll_back("acme", before)
    world.advance(KEYRING_CACHE_S + 1)
    recovery = world.recover("acme")
    world.run()
    if not any(end.type == "project.recovered" for end in world.ended(recovery)):
        world.oracle.violated("it was not recovered")


def test_a_recovery_takes_over_the_customer_key_of_the_marks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_keyring_that_is_restored_and_recovered) == []
    module = import_module("keyturn_workers.pipeline.control.recovery")
    monkeypatch.setattr(module, "take_over", lambda keyring, *_, **__: keyring)
    found = violations(a_keyring_that_is_restored_and_recovered, settle=False)
    assert "the keyring of acme was recovered without its customer key" in found
