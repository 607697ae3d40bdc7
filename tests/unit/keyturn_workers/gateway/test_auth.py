"""Who may read: the keyring alone decides, before anything about an object is read (SPEC 9.1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import SimpleNamespace
from uuid import uuid4

import pytest

from keyturn.crypto import LinkClaims, Secret, link_token
from keyturn.errors import (
    CorruptObjectError,
    CustomerKeyUnavailableError,
    KeyringRolledBackError,
    MarksUnavailableError,
    StorageUnavailableError,
    UnauthorizedError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import format_time, keyring_s3_key
from keyturn_workers.core.erasure import Erasure
from keyturn_workers.core.errors import RefusedError as StorageRefusedError
from keyturn_workers.core.keyring_erasure import begin_erasure
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.gateway import auth as auth_module
from keyturn_workers.gateway import keyring_lookups as lookups_module
from keyturn_workers.gateway.auth import AuthenticationError, Caller, NoApiKeyError
from keyturn_workers.gateway.request import Link
from keyturn_workers.storage import clock as clock_module
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tests.unit.keyturn_workers.gateway.bench import (
    API_KEY,
    DEPLOYMENT,
    KEY,
    NEW_API_KEY,
    Bench,
    kek_of,
    ring_of,
    turned_to,
)
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of
from tools.harness.local_keys import build_keyring

WRONG_KEY = "kt_" + "w" * 43


class Clock:
    """A clock that a test advances."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        fake = SimpleNamespace(monotonic=lambda: self.now, time=lambda: self.now)
        patch.setattr(auth_module, "time", fake)
        patch.setattr(lookups_module, "time", fake)
        own = SimpleNamespace(clock_gettime=lambda _: self.now, CLOCK_BOOTTIME=None)
        patch.setattr(clock_module, "time", own)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def _refused(bench: Bench, project: str = "acme", *authorization: str) -> None:
    given = list(authorization) or [f"Bearer {WRONG_KEY}"]
    with pytest.raises(UnauthorizedError) as refused:
        await bench.auth.authenticate(project, given)
    assert str(refused.value) == "unauthorized"


async def test_the_current_key_authenticates_by_its_kek() -> None:
    bench = Bench()
    caller = await bench.authenticate()
    assert caller.project == "acme"
    assert caller.kek == kek_of(API_KEY) == caller.snapshot.desired.user_kek


@pytest.mark.parametrize(
    "authorization",
    [
        [f"Bearer {API_KEY}"],
        [f"bearer {API_KEY}"],
        [f"BEARER   {API_KEY} "],
    ],
)
async def test_the_authentication_scheme_is_case_insensitive(authorization: list[str]) -> None:
    assert await Bench().auth.authenticate("acme", authorization)


@pytest.mark.parametrize(
    "authorization",
    [
        [f"Bearer {WRONG_KEY}"],
        [f"Bearer {API_KEY[:-1]}"],
        [f"Bearer {API_KEY}x"],
        ["Bearer " + "0" * 43],
    ],
)
async def test_a_wrong_key_is_refused(authorization: list[str]) -> None:
    await _refused(Bench(), "acme", *authorization)


_NONE = "no API key was sent"
_FORM = "not of the form Authorization: Bearer <API key>"
_MALFORMED = "the bearer token is not an API key: an API key is 32 to 512 characters"
_SENT = "sent-by-mistake"
_UNUSABLE: list[tuple[list[str], str]] = [
    ([], _NONE),
    (["Bearer"], _NONE),
    (["Bearer "], _NONE),
    ([""], _FORM),
    ([API_KEY], _FORM),
    ([f"Bearer{API_KEY}"], _FORM),
    ([f"Basic {API_KEY}"], _FORM),
    ([f"{_SENT} {API_KEY}"], _FORM),
    ([f"Bearer\t{API_KEY}"], _FORM),
    ([f"Bearer {API_KEY}", f"Bearer {API_KEY}"], "more than one"),  # even the same one
    ([f"Bearer {API_KEY}", f"Bearer {WRONG_KEY}"], "more than one"),
    (["Bearer undefined"], _MALFORMED),
    ([f"Bearer {_SENT}"], _MALFORMED),
    ([f"Bearer {API_KEY} x"], _MALFORMED),
    ([f"Bearer {API_KEY}\n"], _MALFORMED),
    ([f"Bearer {API_KEY}, Bearer {API_KEY}"], _MALFORMED),
    (["Bearer " + "k" * 31], _MALFORMED),
    (["Bearer " + "k" * 513], _MALFORMED),
    (["Bearer ü" + "k" * 40], _MALFORMED),
]


@pytest.mark.parametrize(("authorization", "detail"), _UNUSABLE)
@pytest.mark.parametrize("project", ["acme", "unknown", "No Project"])
async def test_a_request_without_an_api_key_is_refused_in_words_that_repeat_nothing(
    project: str, authorization: list[str], detail: str
) -> None:
    """The project changes neither the words nor the work: no keyring is read, no KEK derived."""
    bench = Bench(refusal_min_s=60)
    with pytest.raises(NoApiKeyError) as refused:
        await bench.auth.authenticate(project, authorization)
    assert detail in refused.value.detail
    assert refused.value.code == "unauthorized"
    for sent in (API_KEY, WRONG_KEY, _SENT):
        assert sent not in refused.value.detail
    assert bench.storage.calls == {}


@pytest.mark.parametrize(
    "project",
    [
        "",
        "Acme",
        "acme ",
        "acme/",
        "../acme",
        "a" * 64,
        "acme\0",
        ".keyturn",
        "ácme",
        "*",
        "nobody",
    ],
)
async def test_an_invalid_project_id_is_refused_like_an_unknown_project(project: str) -> None:
    bench = Bench()
    await _refused(bench, project, f"Bearer {API_KEY}")
    # Not even a keyring is looked for under a name that no project has.
    assert bench.storage.calls["read"] == (1 if project == "nobody" else 0)


async def test_an_api_key_is_valid_for_its_own_project_only() -> None:
    bench = Bench()
    other = ring_of(NEW_API_KEY, "other")
    bench.storage.plant(keyring_s3_key("other"), build_keyring(other, MASTER_KEYS), Headers({}))
    assert await bench.auth.authenticate("other", [f"Bearer {NEW_API_KEY}"])
    await _refused(bench, "other", f"Bearer {API_KEY}")
    await _refused(bench, "acme", f"Bearer {NEW_API_KEY}")


async def test_the_admin_kek_does_not_authenticate() -> None:
    """Only a KEK that the keyring seals as the current one counts: not one of its history."""
    bench = Bench()
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    await _refused(bench, "acme", f"Bearer {API_KEY}")
    assert await bench.authenticate(NEW_API_KEY)


async def test_authentication_reads_only_the_keyring() -> None:
    bench = Bench()
    bench.plant_sealed()
    await bench.authenticate()
    for project in ("acme", "other", "No Project"):
        await _refused(bench, project)
    assert set(bench.storage.calls) == {"read"}


async def test_a_rotated_key_is_accepted_for_the_cache_time_and_no_longer(clock: Clock) -> None:
    bench = Bench()
    await bench.authenticate()
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    clock.now += 2
    await bench.authenticate()
    clock.now += 0.001
    await _refused(bench, "acme", f"Bearer {API_KEY}")
    await bench.authenticate(NEW_API_KEY)


@pytest.mark.parametrize("project", ["acme", "unknown", "No Project"])
async def test_no_wrong_key_is_refused_before_the_minimum_time(project: str) -> None:
    bench = Bench(refusal_min_s=0.03)
    for _ in range(2):  # not from the cache either
        began = time.monotonic()
        with pytest.raises(AuthenticationError) as refused:
            await bench.auth.authenticate(project, [f"Bearer {WRONG_KEY}"])
        assert refused.value.not_before >= began + 0.03


async def test_a_read_slower_than_the_minimum_shows_only_as_a_multiple_of_it(
    clock: Clock,
) -> None:
    bench = Bench(refusal_min_s=0.5)
    real = bench.storage.read

    async def slow(key: str, **how: int) -> object:
        clock.now += 0.7
        return await real(key, **how)

    bench.storage.read = slow  # type: ignore[method-assign, assignment]
    began = clock.now
    with pytest.raises(AuthenticationError) as refused:
        await bench.auth.authenticate("acme", [f"Bearer {WRONG_KEY}"])
    assert refused.value.not_before == pytest.approx(began + 1.0)


async def test_a_failed_second_read_is_storage_unavailable() -> None:
    bench = Bench()
    caller = await bench.authenticate()

    async def refuses(key: str, **how: int) -> object:
        del key, how
        raise StorageRefusedError("read: AccessDenied")

    bench.storage.read = refuses  # type: ignore[method-assign, assignment]
    with pytest.raises(StorageUnavailableError):
        await bench.auth.reauthenticate(caller)


async def test_a_keyring_that_cannot_be_opened_is_read_once_in_the_cache_time(
    clock: Clock,
) -> None:
    """Its detail is not sent to a caller that cannot be authenticated."""
    bench = Bench()
    bench.storage.plant(keyring_s3_key("acme"), b"[]", Headers({}))
    for _ in range(3):
        with pytest.raises(CorruptObjectError) as refused:
            await bench.auth.authenticate("acme", [f"Bearer {WRONG_KEY}"])
        assert refused.value.detail == ""
    assert bench.storage.calls == {"read": 1}
    clock.now += 2.001
    bench.write_keyring(bench.ring)
    assert await bench.authenticate()


async def test_an_authenticated_caller_does_not_wait() -> None:
    async with asyncio.timeout(5):
        await Bench(refusal_min_s=60).authenticate()


async def test_a_wrong_key_derives_one_kek_whatever_the_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the time would distinguish a known project from an unknown one."""
    derived = []

    def counting(api_key: str, project: str, pepper: str) -> Secret:
        kek = kek_of(api_key, project)
        derived.append((project, pepper))
        return kek

    monkeypatch.setattr(auth_module, "user_kek", counting)
    bench = Bench()
    for project in ("acme", "unknown", "No Project"):
        derived.clear()
        await _refused(bench, project)
        assert len(derived) == 1


async def test_many_callers_of_an_unknown_project_share_one_read() -> None:
    bench = Bench()
    await asyncio.gather(*(_refused(bench, "unknown") for _ in range(50)))
    assert bench.storage.calls == {"read": 1}


async def test_a_canceled_caller_does_not_cancel_the_others() -> None:
    bench = Bench()
    first = asyncio.create_task(bench.authenticate())
    others = [asyncio.create_task(bench.authenticate()) for _ in range(3)]
    await asyncio.sleep(0)
    first.cancel()
    assert len(await asyncio.gather(*others)) == 3
    assert bench.storage.calls == {"read": 1}


async def test_the_memory_of_failures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_module, "_MAX_FAILURES", 10)
    bench = Bench()
    for number in range(30):
        bench.storage.plant(keyring_s3_key(f"bad-{number}"), b"{}", Headers({}))
        with pytest.raises(CorruptObjectError):
            await bench.auth.authenticate(f"bad-{number}", [f"Bearer {WRONG_KEY}"])
    assert list(bench.auth._failures) == [f"bad-{number}" for number in range(20, 30)]


@pytest.mark.slow
async def test_nothing_is_kept_of_unknown_projects() -> None:
    bench = Bench()
    await bench.authenticate()
    await asyncio.gather(*(_refused(bench, f"made-up-{number}") for number in range(200)))
    assert bench.auth._reading == {}
    assert not bench.auth._failures
    assert set(bench.keyrings._cache.projects) == {"acme"}
    assert bench.lookups._unsent == {}
    assert bench.lookups._next is None


async def test_a_forged_keyring_authenticates_no_caller_and_is_corrupt() -> None:
    """A bucket writer can neither forge a keyring nor use another project's."""
    forged = build_keyring(ring_of(), {"m1": Secret(b"\0" * 32)})
    moved = build_keyring(ring_of(API_KEY, "other"), MASTER_KEYS)
    for body in (forged, moved, b"{}", b""):
        bench = Bench()
        bench.storage.plant(keyring_s3_key("acme"), body, Headers({}))
        for key in (API_KEY, WRONG_KEY):
            with pytest.raises(CorruptObjectError):
                await bench.authenticate(key)


async def test_a_keyring_under_an_unknown_master_key_is_transient() -> None:
    bench = Bench()
    keys = {"m3": Secret(bytes(32))}
    body = build_keyring(replace(ring_of(), master_key="m3"), keys)
    bench.storage.plant(keyring_s3_key("acme"), body, Headers({}))
    with pytest.raises(UnknownMasterKeyError):
        await bench.authenticate()


async def test_a_storage_failure_authenticates_no_caller_and_is_not_cached() -> None:
    bench = Bench()
    bench.storage.fail_next("read", StorageUnavailableError("down"))
    with pytest.raises(StorageUnavailableError):
        await bench.authenticate()
    await bench.authenticate()


async def test_no_secret_shows() -> None:
    bench = Bench()
    caller = await bench.authenticate()
    secrets = [API_KEY, kek_of(API_KEY).reveal().hex(), repr(kek_of(API_KEY).reveal())]
    secrets += [repr(MASTER_KEYS["m1"].reveal()), repr(bench.desired.admin_kek.reveal())]
    for shown in (repr(caller), repr(vars(bench.auth)), str(caller)):
        assert not [secret for secret in secrets if secret in shown]


# By an API key and by a link: the same keyrings decide.


def _by_key(bench: Bench, api_key: str = API_KEY, project: str = "acme") -> Awaitable[Caller]:
    return bench.auth.authenticate(project, [f"Bearer {api_key}"])


def _by_link(bench: Bench, api_key: str = API_KEY, project: str = "acme") -> Awaitable[Caller]:
    return bench.auth.authenticate_link(project, KEY, _link(api_key, project=project))


_Ask = Callable[..., Awaitable[Caller]]
_either = pytest.mark.parametrize("ask", [_by_key, _by_link])


@_either
async def test_what_is_current_is_never_refused_right_after_a_rotation(
    clock: Clock, ask: _Ask
) -> None:
    """It was refused for up to the cache's 2 seconds. Now the old one is refused."""
    bench = Bench()
    await ask(bench)
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    clock.now += 0.1
    await ask(bench)
    await ask(bench, NEW_API_KEY)
    with pytest.raises(UnauthorizedError):
        await ask(bench)


@pytest.mark.parametrize(
    ("ask", "cache_s", "is_known"),
    [
        (_by_key, 2.0, False),
        (_by_link, 60.0, False),
        (_by_key, 2.0, True),
        (_by_link, 2.0, True),
    ],
)
async def test_a_read_that_is_too_old_is_not_joined(
    clock: Clock, ask: _Ask, cache_s: float, *, is_known: bool
) -> None:
    """A delayed response of the storage shows the keyring as it was when it was sent.

    Of a known project, the callers whose key was right share the read, once its cache time is over.
    """
    bench = Bench(cache_s=cache_s)
    if is_known:
        await ask(bench)
        clock.now += cache_s + 0.001
    started, answered = asyncio.Event(), asyncio.Event()
    real = bench.storage.read

    async def stalls(key: str, **how: int) -> object:
        shown = await real(key, **how)
        started.set()
        await answered.wait()
        return shown

    bench.storage.read = stalls  # type: ignore[method-assign, assignment]
    early = asyncio.ensure_future(ask(bench))
    await started.wait()
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    clock.now += 2.001
    late = asyncio.ensure_future(ask(bench))
    await asyncio.sleep(0)
    answered.set()
    assert (await early).snapshot.keyring.current.generation == 1
    with pytest.raises(UnauthorizedError):
        await late


@_either
async def test_many_callers_at_once_share_one_read(ask: _Ask) -> None:
    bench = Bench()
    assert len(await asyncio.gather(*(ask(bench) for _ in range(50)))) == 50
    assert bench.storage.calls == {"read": 1}


@_either
async def test_a_project_is_accepted_as_soon_as_it_is_enrolled(ask: _Ask) -> None:
    """An earlier request does not make it unknown."""
    bench = Bench()
    with pytest.raises(UnauthorizedError):
        await ask(bench, project="late")
    ring = ring_of(API_KEY, "late")
    bench.storage.plant(keyring_s3_key("late"), build_keyring(ring, MASTER_KEYS), Headers({}))
    assert await ask(bench, project="late")


@_either
async def test_a_keyring_that_cannot_be_opened_is_no_detail_for_strangers(ask: _Ask) -> None:
    bench = Bench()
    bench.storage.plant(keyring_s3_key("acme"), b"[]", Headers({}))
    with pytest.raises(CorruptObjectError) as refused:
        await ask(bench)
    assert refused.value.detail == ""


@_either
@pytest.mark.parametrize("is_known", [False, True])
async def test_only_who_has_the_key_of_a_project_learns_that_it_is_being_erased(
    ask: _Ask, *, is_known: bool
) -> None:
    bench = Bench(cache_s=0)
    if is_known:
        await ask(bench)
    now = format_time(bench.storage.now)
    erasure = Erasure(str(uuid4()), "ops", "ab" * 32, now, now, "the end", None)
    bench.write_keyring(begin_erasure(bench.ring, erasure))
    with pytest.raises(CustomerKeyUnavailableError):
        await ask(bench)
    with pytest.raises(AuthenticationError):
        await ask(bench, WRONG_KEY)


@_either
async def test_reauthentication_starts_a_new_read(ask: _Ask) -> None:
    bench = Bench()
    caller = await ask(bench)
    assert (await bench.auth.reauthenticate(caller)).kek == caller.kek
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    with pytest.raises(UnauthorizedError):
        await bench.auth.reauthenticate(caller)
    await bench.storage.delete(keyring_s3_key("acme"))
    with pytest.raises(UnauthorizedError):
        await bench.auth.reauthenticate(caller)


class TestLinks:
    """A link is checked by the same keyrings as an API key, at the same price."""

    async def test_the_caller_by_a_link_has_the_kek_of_the_project(self) -> None:
        bench = Bench()
        caller = await bench.auth.authenticate_link("acme", KEY, _link())
        assert (caller.project, caller.kek) == ("acme", kek_of(API_KEY))

    @pytest.mark.parametrize(
        ("project", "object_key", "link"),
        [
            ("acme", KEY, None),
            ("acme", None, "valid"),
            ("acme", f"{KEY}x", "valid"),
            ("acme", KEY, "expired"),
            ("acme", KEY, "of another key"),
            ("acme", KEY, "of another deployment"),
            ("unknown", KEY, "valid"),
            ("No Project", KEY, "valid"),
            ("zero\0byte", KEY, "valid"),
        ],
    )
    async def test_every_other_link_is_refused_after_the_minimum_time(
        self, project: str, object_key: str | None, link: str | None
    ) -> None:
        links = {
            None: None,
            "valid": _link(),
            "expired": _link(expires=5),
            "of another key": _link(NEW_API_KEY),
            "of another deployment": _link(deployment="other"),
        }
        bench = Bench(refusal_min_s=0.03)
        for _ in range(2):  # not from the cache either
            began = time.monotonic()
            with pytest.raises(AuthenticationError) as refused:
                await bench.auth.authenticate_link(project, object_key, links[link])
            assert refused.value.not_before >= began + 0.03
            assert str(refused.value) == "unauthorized"

    async def test_a_wrong_link_costs_what_a_wrong_key_costs(self) -> None:
        costs = []
        for by_link in (False, True):
            bench = Bench()
            await bench.authenticate()
            callers = [
                bench.auth.authenticate_link("acme", KEY, _link(NEW_API_KEY))
                if by_link
                else bench.authenticate(WRONG_KEY)
                for _ in range(300)
            ]
            ended = await asyncio.gather(*callers, return_exceptions=True)
            assert {type(each) for each in ended} == {AuthenticationError}
            costs.append(bench.storage.calls)
        assert costs[0] == costs[1] == {"read": 2}

    async def test_a_rotation_ends_a_link_within_the_cache_time(self, clock: Clock) -> None:
        bench = Bench()
        link = _link(expires=10**9)
        assert await bench.auth.authenticate_link("acme", KEY, link)
        bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
        clock.now += 1.999
        assert await bench.auth.authenticate_link("acme", KEY, link)
        clock.now += 0.002
        with pytest.raises(UnauthorizedError):
            await bench.auth.authenticate_link("acme", KEY, link)

    async def test_a_longer_cache_time_is_for_api_keys_alone(self, clock: Clock) -> None:
        """A rotation ends every link after 2 seconds, whatever the setting."""
        bench = Bench(cache_s=60.0)
        link = _link(expires=10**9)
        await bench.authenticate()
        bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
        clock.now += 2
        assert await bench.auth.authenticate_link("acme", KEY, link)
        clock.now += 0.001
        await bench.authenticate()
        assert bench.storage.calls == {"read": 1}
        with pytest.raises(UnauthorizedError):
            await bench.auth.authenticate_link("acme", KEY, link)

    async def test_with_a_longer_cache_time_links_share_a_read_every_2_seconds(
        self, clock: Clock
    ) -> None:
        bench = Bench(cache_s=60.0)
        await bench.authenticate()
        clock.now += 2.001
        for _ in range(2):
            callers = (bench.auth.authenticate_link("acme", KEY, _LINK) for _ in range(50))
            assert len(await asyncio.gather(*callers)) == 50
        assert bench.storage.calls["read"] <= 3


def _link(
    api_key: str = API_KEY,
    *,
    expires: int = 10**10,
    project: str = "acme",
    object_key: str = KEY,
    deployment: str = DEPLOYMENT,
) -> Link:
    claims = LinkClaims(project, object_key, expires, inline=False)
    token = link_token(kek_of(api_key, project), deployment, claims)
    return Link(expires, inline=False, token=token)


_LINK = _link(expires=10**9)


@pytest.mark.parametrize("removed", [False, True])
async def test_a_key_of_a_rolled_back_keyring_opens_nothing(*, removed: bool) -> None:
    witness = FakeWitness()
    witness.is_gateway = True
    bench = Bench(witness=witness, cache_s=0)
    s3_key = keyring_s3_key("acme")
    await bench.auth.authenticate("acme", [f"Bearer {API_KEY}"])  # it was never marked
    first = (await bench.storage.read(s3_key))[1]
    bench.write_keyring(replace(turned_to(bench.ring, NEW_API_KEY), serial=1))
    witness.receive("acme", mark_of((await bench.storage.read(s3_key))[1]))
    await bench.auth.authenticate("acme", [f"Bearer {NEW_API_KEY}"])
    if removed:
        await bench.storage.delete(s3_key)
    else:
        bench.storage.plant(s3_key, first, Headers({}))
    for key in (API_KEY, NEW_API_KEY, WRONG_KEY):
        with pytest.raises(KeyringRolledBackError):
            await bench.auth.authenticate("acme", [f"Bearer {key}"])
    assert not witness.published


async def test_nothing_is_published_for_an_old_key_before_the_marks_are_known() -> None:
    """A gateway that just started serves a rolled-back keyring for a moment, for reads alone."""
    witness = FakeWitness()
    witness.is_gateway, witness.is_current = True, False
    bench = Bench(witness=witness)
    ring = replace(bench.ring, serial=1)
    bench.write_keyring(ring)
    body = (await bench.storage.read(keyring_s3_key("acme")))[1]
    caller = await bench.auth.authenticate("acme", [f"Bearer {API_KEY}"])
    assert not caller.knew_marks
    with pytest.raises(MarksUnavailableError):
        await bench.auth.with_marks(caller)
    witness.is_current = True
    witness.receive("acme", mark_of(body))
    assert (await bench.auth.with_marks(caller)).kek == caller.kek
    newest = replace(turned_to(bench.ring, NEW_API_KEY), serial=2)
    witness.receive("acme", mark_of(build_keyring(newest, MASTER_KEYS)))
    with pytest.raises(KeyringRolledBackError):
        await bench.auth.with_marks(caller)


async def test_a_rolled_back_keyring_costs_no_read_for_each_caller(clock: Clock) -> None:
    witness = FakeWitness()
    bench = Bench(witness=witness)
    body = build_keyring(replace(bench.ring, serial=2), MASTER_KEYS)
    witness.receive("acme", mark_of(body))
    for _ in range(3):
        with pytest.raises(KeyringRolledBackError):
            await bench.auth.authenticate("acme", [f"Bearer {API_KEY}"])
    assert bench.storage.calls["read"] == 1
    clock.now += 3
    bench.storage.plant(keyring_s3_key("acme"), body, Headers({}))
    await bench.auth.authenticate("acme", [f"Bearer {API_KEY}"])
