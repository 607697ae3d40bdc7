"""The action planned for each kind of object (SPEC 4, 5.4, 8.2, 8.7)."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import (
    BODY_CONTEXT,
    Secret,
    new_dek,
    open_tombstone,
    seal,
    sealed_size,
    unwrap_dek,
)
from keyturn.errors import (
    KmsUnavailableError,
    NoUsableWrapError,
    WrapsDisagreeError,
    all_errors,
)
from keyturn_workers.core import wraps as wraps_module
from keyturn_workers.core.plan_action import (
    Encrypt,
    NoOp,
    PlannedAction,
    ResealTombstone,
    Rewrap,
    plan_action,
)
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.wraps import wrap
from tests.unit.keyturn_workers.factories import (
    AT,
    MASTER_KEYS,
    deleted,
    enc,
    keyring,
    object_view,
    rotated,
    sealed_object,
)
from tools.harness.local_keys import admin_keks, desired_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn.metadata import Wraps
    from keyturn_workers.core.keyring import DesiredState, Keyring

KEY: Final = "reports/q3.pdf"
KEYS = admin_keks("acme", MASTER_KEYS)
FIRST = keyring()
SECOND = rotated(FIRST)
THIRD = rotated(SECOND)
DEK, OTHER_DEK = new_dek(), new_dek()
BODY = seal(DEK, BODY_CONTEXT, b"hello")
BAD = bytes(104)
NO_OPTIONS = SweepOptions()


def at(ring: Keyring) -> DesiredState:
    return desired_state(ring, MASTER_KEYS)


def under(ring: Keyring, dek: bytes = DEK, key: str = KEY) -> Wraps:
    return wrap(at(ring), key, dek)


def decided(
    metadata: Mapping[str, str],
    body: bytes = BODY,
    ring: Keyring = FIRST,
    options: SweepOptions = NO_OPTIONS,
    **head: Any,
) -> PlannedAction:
    return plan_action(object_view(metadata, body, **head), KEY, ring, at(ring), KEYS, options)


def check_rewrap(action: PlannedAction, ring: Keyring, dek: bytes = DEK) -> None:
    """Both wraps open under the desired KEKs, to that DEK, and carry the right labels."""
    assert isinstance(action, Rewrap)
    wraps, desired = action.wraps, at(ring)
    place: dict[str, Any] = {
        "algorithm": wraps.algorithm,
        "project": desired.project,
        "object_key": KEY,
        "generation": desired.generation,
    }
    assert unwrap_dek(desired.user_kek, "user", wrap=wraps.user, **place) == dek
    assert unwrap_dek(desired.admin_kek, "admin", wrap=wraps.admin, **place) == dek
    labels = (wraps.generation, wraps.kek_id, wraps.master_key)
    assert labels == (desired.generation, desired.kek_id, desired.master_key)


@dataclass(frozen=True)
class Case:
    """An object, the keyring, the options of the sweep, and the expected plan.

    `answer` is a code of SPEC 12, a kind of Keep, or `rewrap`.
    """

    name: str
    metadata: Mapping[str, str]
    answer: str
    body: bytes = BODY
    ring: Keyring = FIRST
    options: SweepOptions = NO_OPTIONS
    head: Mapping[str, Any] = field(default_factory=dict)


REPAIR = SweepOptions(repair=True)
M2 = replace(FIRST, master_key="m2")
M2_SECOND = replace(SECOND, master_key="m2")
CLEARED = replace(SECOND, history=(replace(FIRST.current, kek=None),))
ANOTHER_SECOND = rotated(FIRST)
STRANGER = keyring()
NOW = under(FIRST)
LATER = under(SECOND)


def wraps_of(user: Wraps, admin: Wraps) -> Wraps:
    """The labels and the admin wrap of one, the user wrap of the other."""
    return replace(admin, user=user.user)


SEALED = [
    Case("as desired", enc(NOW), "current"),
    Case("as desired after a turn", enc(LATER), "current", ring=SECOND),
    Case("one generation behind", enc(NOW), "rewrap", ring=SECOND),
    Case("two generations behind", enc(NOW), "rewrap", ring=THIRD),
    Case("behind, old KEK cleared", enc(NOW), "rewrap", ring=CLEARED),
    Case("another master key", enc(NOW), "rewrap", ring=M2),
    Case("both behind", enc(NOW), "rewrap", ring=M2_SECOND),
    Case("user wrap brought up to date alone", enc(wraps_of(LATER, NOW)), "wraps_disagree",
         ring=SECOND),
    Case("the same, once the old KEK was cleared", enc(wraps_of(LATER, NOW)), "rewrap",
         ring=CLEARED),
    Case("admin wrap brought up to date alone", enc(wraps_of(NOW, LATER)), "wraps_disagree",
         ring=SECOND),
    Case("user wrap broken", enc(replace(NOW, user=BAD)), "wraps_disagree"),
    Case("user wrap broken, behind", enc(replace(NOW, user=BAD)), "wraps_disagree", ring=SECOND),
    Case("user wrap broken, its generation's KEK cleared", enc(replace(NOW, user=BAD)), "rewrap",
         ring=CLEARED),
    Case("user wrap broken, a label without a KEK", enc(replace(NOW, user=BAD, generation=9)),
         "wraps_disagree"),
    Case("user wrap broken, repaired", enc(replace(NOW, user=BAD)), "rewrap", options=REPAIR),
    Case("user wrap broken, and the DEK of another body",
         enc(replace(under(FIRST, OTHER_DEK), user=BAD)), "corrupt_object"),
    Case("admin wrap broken", enc(replace(NOW, admin=BAD)), "rewrap"),
    Case("user wrap empty", enc(replace(NOW, user=b"")), "wraps_disagree"),
    Case("of a generation that an old keyring made again", enc(under(ANOTHER_SECOND)),
         "wraps_disagree", ring=SECOND),
    Case("the same, after one more rotation", enc(under(ANOTHER_SECOND)), "wraps_disagree",
         ring=THIRD),
    Case("the same, repaired", enc(under(ANOTHER_SECOND)), "rewrap", ring=THIRD, options=REPAIR),
    Case("an earlier key's wrap of the right DEK beside the operator's",
         enc(wraps_of(under(FIRST), LATER)), "wraps_disagree", ring=SECOND),
    Case("an earlier key's wrap of another DEK, at its own generation",
         enc(wraps_of(under(FIRST, OTHER_DEK), NOW)), "wraps_disagree", ring=SECOND),
    Case("both broken", enc(replace(NOW, user=BAD, admin=BAD)), "no_usable_wrap"),
    Case("swapped between the roles", enc(replace(NOW, user=NOW.admin, admin=NOW.user)),
         "no_usable_wrap"),
    Case("the admin wrap in both places", enc(replace(NOW, user=NOW.admin)), "wraps_disagree"),
    Case("moved from another key", enc(under(FIRST, key="other")), "no_usable_wrap"),
    Case("moved from another project", enc(under(keyring("other"))), "no_usable_wrap"),
    Case("two DEKs", enc(wraps_of(under(FIRST, OTHER_DEK), NOW)), "corrupt_object"),
    Case("two DEKs, the user's is the body's", enc(wraps_of(NOW, under(FIRST, OTHER_DEK))),
         "corrupt_object"),
    Case("two DEKs, the user's at the label's generation",
         enc(replace(NOW, user=wrap(replace(at(FIRST), generation=2), KEY, OTHER_DEK).user,
             generation=2)), "corrupt_object"),
    Case("two DEKs, the user's at a generation that nothing names",
         enc(replace(under(THIRD), user=wrap(replace(at(THIRD), generation=1), KEY,
             OTHER_DEK).user)), "wraps_disagree", ring=THIRD),
    Case("two DEKs after a turn", enc(wraps_of(under(SECOND, OTHER_DEK), NOW)), "corrupt_object",
         ring=SECOND),
    Case("a DEK of another body", enc(under(FIRST, OTHER_DEK)), "corrupt_object"),
    Case("a DEK of another body, behind", enc(under(FIRST, OTHER_DEK)), "corrupt_object",
         ring=SECOND),
    Case("a DEK of another body by the user wrap", enc(replace(under(FIRST, OTHER_DEK), admin=BAD)),
         "corrupt_object"),
    Case("ahead of the keyring", enc(LATER), "keyring_rolled_back"),
    Case("admin wrap ahead of the keyring", enc(wraps_of(NOW, LATER)), "keyring_rolled_back"),
    Case("ahead, and under another master key", enc(under(M2_SECOND)), "keyring_rolled_back"),
    Case("ahead by its label alone", enc(replace(NOW, generation=9)), "rewrap"),
    Case("label behind", enc(replace(LATER, generation=1)), "rewrap", ring=SECOND),
    Case("label at a generation that never was", enc(replace(NOW, generation=7)), "rewrap",
         ring=THIRD),
    Case("label at another earlier generation", enc(replace(NOW, generation=2)), "rewrap",
         ring=THIRD),
    Case("another master key, its label wrong", enc(replace(NOW, master_key="m2")), "rewrap",
         ring=M2),
    Case("every label wrong", enc(replace(NOW, generation=9, kek_id="0" * 16, master_key="gone")),
         "rewrap", ring=M2_SECOND),
    Case("an unknown name", {**enc(NOW), "enc-dek-user-1": enc(NOW)["enc-dek-user"]}, "rewrap"),
    Case("a wrap in place of an upload's id", {**enc(NOW), "enc-upload": enc(NOW)["enc-dek-user"]},
         "rewrap"),
    Case("wrong KEK id", enc(replace(NOW, kek_id="0" * 16)), "rewrap"),
    Case("wrong master key's name", enc(replace(NOW, master_key="m2")), "rewrap"),
    Case("no master key's name", {**enc(NOW), "enc-kek-admin": ""}, "rewrap"),
    Case("only the user wrap, its label wrong", enc(replace(NOW, admin=BAD, generation=3)),
         "rewrap"),
    Case("only the user wrap, of an earlier KEK", enc(replace(NOW, admin=BAD)), "no_usable_wrap",
         ring=SECOND),
    Case("the same, repaired", enc(replace(NOW, admin=BAD)), "rewrap", ring=SECOND,
         options=REPAIR),
    Case("the same, two turns later", enc(replace(NOW, admin=BAD)), "rewrap", ring=THIRD,
         options=REPAIR),
    Case("the same, its label wrong", enc(replace(NOW, admin=BAD, generation=2)), "rewrap",
         ring=THIRD, options=REPAIR),
    Case("repaired, the old KEK cleared", enc(replace(NOW, admin=BAD)), "no_usable_wrap",
         ring=CLEARED, options=REPAIR),
    Case("repaired, the DEK of another body", enc(replace(under(FIRST, OTHER_DEK), admin=BAD)),
         "corrupt_object", ring=SECOND, options=REPAIR),
    Case("repaired, another project's KEK", enc(replace(under(STRANGER), admin=BAD)),
         "no_usable_wrap", ring=SECOND, options=REPAIR),
    Case("an old KEK's wrap beside the operator's", enc(wraps_of(under(FIRST, OTHER_DEK), LATER)),
         "rewrap", ring=SECOND, options=REPAIR),
    Case("cut in the header", enc(NOW), "corrupt_object", body=BODY[:55]),
    Case("cut after the header", enc(NOW), "corrupt_object", body=BODY[:56]),
    Case("cut in the tag", enc(NOW), "corrupt_object", body=BODY[:71]),
    Case("empty body", enc(NOW), "corrupt_object", body=b""),
    Case("a length that no body has", enc(NOW), "corrupt_object",
         head={"size_bytes": sealed_size(16384) - 5}),
    Case("header flipped", enc(NOW), "corrupt_object", body=bytes([BODY[0] ^ 1]) + BODY[1:]),
    Case("unknown algorithm", {**enc(NOW), "enc-algo": "ROT13"}, "unknown_algorithm"),
    Case("unreadable label", {**enc(NOW), "enc-kek-user": "one:x"}, "corrupt_object"),
    Case("unreadable wrap", {**enc(NOW), "enc-dek-user": "%"}, "corrupt_object"),
    Case("a wrap stripped", {n: v for n, v in enc(NOW).items() if n != "enc-dek-admin"},
         "corrupt_object"),
    Case("enc-algo stripped", {n: v for n, v in enc(NOW).items() if n != "enc-algo"},
         "corrupt_object"),
    Case("all stripped", {}, "corrupt_object"),
    Case("of the earlier system", {"enc-algo": "AES-256-GCM", "enc-dek-user": "A" * 80},
         "unknown_algorithm"),
    Case("said to be deleted", {**enc(NOW), "enc-algo": "deleted"}, "no_usable_wrap"),
    Case("archived", enc(NOW), "archived_object", head={"archived": True}),
    Case("archived, unread", enc(NOW), "archived_object", body=b"",
         head={"archived": True, "size_bytes": len(BODY)}),
    Case("locked, as desired", enc(NOW), "current", head={"locked": True}),
    Case("locked, behind", enc(NOW), "rewrap", ring=SECOND, head={"locked": True}),
]  # fmt: skip

OPEN = keyring(plaintext=True)
ENCRYPT = SweepOptions(encrypt_plaintext=True)
PLAINTEXT = [
    Case("allowed", {"author": "kim"}, "plaintext", body=b"hello", ring=OPEN),
    Case("allowed, by an upload", {"enc-upload": "x"}, "plaintext", body=b"hello", ring=OPEN),
    Case("allowed, archived", {}, "plaintext", ring=OPEN, head={"archived": True}),
    Case("forbidden", {"author": "kim"}, "corrupt_object", body=b"hello"),
    Case("forbidden, to be encrypted", {}, "corrupt_object", body=b"hello", options=ENCRYPT),
    Case("to be encrypted", {}, "encrypt", body=b"hello", ring=OPEN, options=ENCRYPT),
    Case("to be encrypted, empty", {}, "encrypt", body=b"", ring=OPEN, options=ENCRYPT),
    Case("to be encrypted, archived", {}, "archived_object", ring=OPEN, options=ENCRYPT,
         head={"archived": True}),
    Case("with another enc- name", {"enc-dek-user": "AA=="}, "corrupt_object", ring=OPEN,
         options=ENCRYPT),
]  # fmt: skip

TOMBSTONES = [
    Case("as desired", deleted(at(FIRST), KEY), "deleted", body=b""),
    Case("as desired after a turn", deleted(at(FIRST), KEY), "deleted", body=b"", ring=SECOND),
    Case("of another master key", deleted(at(FIRST), KEY), "resealtombstone", body=b"", ring=M2),
    Case("of another key", deleted(at(FIRST), "other"), "no_usable_wrap", body=b""),
    Case("of another project", deleted(at(keyring("other")), KEY), "no_usable_wrap", body=b""),
    Case("a DEK's wrap in its place", {"enc-algo": "deleted", "enc-dek-admin":
         enc(NOW)["enc-dek-admin"]}, "no_usable_wrap", body=b""),
    Case("stripped", {"enc-algo": "deleted"}, "corrupt_object", body=b""),
    Case("with a user wrap", {**deleted(at(FIRST), KEY), "enc-dek-user": enc(NOW)["enc-dek-user"]},
         "resealtombstone", body=b""),
    Case("with an unknown name", {**deleted(at(FIRST), KEY), "enc-x": ""}, "resealtombstone",
         body=b""),
    Case("with a body", deleted(at(FIRST), KEY), "resealtombstone"),
    Case("with other metadata", {**deleted(at(FIRST), KEY), "author": "kim"}, "deleted", body=b""),
    Case("archived", deleted(at(FIRST), KEY), "deleted", body=b"", head={"archived": True}),
]  # fmt: skip


def by_name(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def check(case: Case) -> PlannedAction | None:
    """The plan, compared with the table; None if an error was expected."""
    if case.answer in all_errors():
        with pytest.raises(all_errors()[case.answer]):
            decided(case.metadata, case.body, case.ring, case.options, **case.head)
        return None
    action = decided(case.metadata, case.body, case.ring, case.options, **case.head)
    if case.answer == "rewrap":
        check_rewrap(action, case.ring)
    else:
        name = action.kind if isinstance(action, NoOp) else type(action).__name__.lower()
        assert name == case.answer
    return action


@by_name(SEALED)
def test_the_plan_for_an_encrypted_object(case: Case) -> None:
    check(case)


@by_name(PLAINTEXT)
def test_the_plan_for_plaintext(case: Case) -> None:
    assert isinstance(check(case), NoOp | Encrypt | None)


@by_name(TOMBSTONES)
def test_the_plan_for_a_tombstone(case: Case) -> None:
    """A resealed tombstone keeps the time of the delete, not of the sweep."""
    action = check(case)
    if isinstance(action, ResealTombstone):
        assert open_tombstone(at(case.ring).admin_kek, "acme", KEY, action.sealed) == AT


@pytest.mark.parametrize("case", [c for c in SEALED if c.answer == "rewrap"], ids=lambda c: c.name)
def test_a_rewrapped_object_is_current(case: Case) -> None:
    """One pass is enough: the next one changes nothing."""
    action = decided(case.metadata, case.body, case.ring, case.options, **case.head)
    assert isinstance(action, Rewrap)
    again = decided(enc(action.wraps), case.body, case.ring)
    assert again == NoOp("current")


def test_a_longer_history_never_hides_an_object() -> None:
    """Ten rotations behind, with a label that names none of them."""
    rings = [FIRST]
    for _ in range(10):
        rings.append(rotated(rings[-1]))
    for older, newer in pairwise(rings):
        assert newer.history[-1].kek_id == older.current.kek_id
    for ring in rings:
        lost = replace(under(ring), generation=99, master_key="gone", kek_id="f" * 16)
        check_rewrap(decided(enc(lost), ring=rings[-1]), rings[-1])


def test_an_unavailable_master_key_opens_nothing() -> None:
    keys = admin_keks("acme", {"m2": MASTER_KEYS["m2"]})
    stale = enc(replace(NOW, user=BAD))
    with pytest.raises(NoUsableWrapError):
        plan_action(object_view(stale, BODY), KEY, M2, at(M2), keys, NO_OPTIONS)


def test_nothing_is_called_unusable_while_a_master_key_is_away() -> None:
    """A sweep would note the object as failed for good, and end unclean."""
    away = replace(KEYS, keks={"m2": KEYS.keks["m2"]}, unavailable=frozenset({"m1"}))
    tombstone = deleted(at(FIRST), KEY)
    for metadata, body in ((enc(replace(NOW, user=BAD)), BODY), (tombstone, b"")):
        with pytest.raises(KmsUnavailableError):
            plan_action(object_view(metadata, body), KEY, M2, at(M2), away, NO_OPTIONS)


@pytest.fixture
def unwraps(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often each role's wrap is tried."""
    tried: Counter[str] = Counter()

    def counted(kek: Secret, role: Any, **place: Any) -> bytes:
        tried[role] += 1
        return unwrap_dek(kek, role, **place)

    monkeypatch.setattr(wraps_module, "unwrap_dek", counted)
    return tried


def test_a_current_object_costs_two_unwraps(unwraps: Counter[str]) -> None:
    """A proving pass plans thousands of objects a second, however long the history is."""
    ring = FIRST
    for _ in range(20):
        ring = rotated(ring)
    assert decided(enc(under(ring)), ring=ring) == NoOp("current")
    assert unwraps == {"user": 1, "admin": 1}


def test_an_object_one_rotation_behind_costs_three_unwraps(unwraps: Counter[str]) -> None:
    before = FIRST
    for _ in range(20):
        before = rotated(before)
    ring = rotated(before)
    assert isinstance(decided(enc(under(before)), ring=ring), Rewrap)
    assert unwraps == {"user": 1, "admin": 2}


def test_a_planned_action_prints_no_key() -> None:
    action = decided(enc(NOW), ring=SECOND)
    assert repr(DEK)[2:-1] not in repr(action)


def test_two_wraps_of_a_dek_differ() -> None:
    """Two wraps of one DEK share no salt."""
    one, two = (decided(enc(NOW), ring=SECOND) for _ in range(2))
    assert isinstance(one, Rewrap)
    assert isinstance(two, Rewrap)
    assert one.wraps.user != two.wraps.user
    assert one.wraps.admin != two.wraps.admin


@pytest.mark.parametrize("position", [0, 23, 24, 55, 56, 87, 88, 103])
@pytest.mark.parametrize("role", ["user", "admin"])
def test_a_flip_anywhere_in_a_wrap_makes_it_useless(position: int, role: str) -> None:
    flipped = bytearray(getattr(NOW, role))
    flipped[position] ^= 1
    broken = enc(replace(NOW, **{role: bytes(flipped)}))  # type: ignore[arg-type]
    if role == "user":
        with pytest.raises(WrapsDisagreeError):
            decided(broken)
    check_rewrap(decided(broken, options=REPAIR), FIRST)


@pytest.mark.parametrize("cut", [*range(0, 40, 7), 56, 72, 103])
def test_a_truncated_wrap_does_not_open(cut: int) -> None:
    with pytest.raises(WrapsDisagreeError):
        decided(enc(replace(NOW, user=NOW.user[:cut])))


def test_a_rewrap_of_an_old_keyring_is_refused_by_the_current_one() -> None:
    """An object goes through both branches of a project whose keyring was rolled back and rotated.

    A sweep by either branch brings no object of the other to its own state.
    """
    for mine, other in ((SECOND, ANOTHER_SECOND), (ANOTHER_SECOND, SECOND)):
        check_rewrap(decided(enc(NOW), ring=mine), mine)
        with pytest.raises(WrapsDisagreeError):
            decided(enc(under(mine)), ring=other)


def test_only_header_and_length_of_a_large_object_matter() -> None:
    """Only header and length are read, whatever the size."""
    wraps, body = sealed_object(at(FIRST), KEY, os.urandom(70_000))
    assert decided(enc(wraps), body) == NoOp("current")
    huge = sealed_size(5 * 1024**4)
    assert decided(enc(wraps), body[:56], size_bytes=huge) == NoOp("current")


def test_a_generation_without_its_kek_is_still_tried() -> None:
    """A cleared KEK leaves its generation in the history, so a wrong label stays harmless."""
    ring = replace(THIRD, history=tuple(replace(g, kek=None) for g in THIRD.history))
    check_rewrap(decided(enc(replace(NOW, generation=2)), ring=ring), ring)
