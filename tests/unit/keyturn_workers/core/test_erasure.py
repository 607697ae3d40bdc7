"""An erasure in the keyring: its form, its order, and what may be erased (SPEC 5.2, 8.8)."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import Secret
from keyturn.errors import CorruptObjectError, GenerationMismatchError
from keyturn.identifiers import format_time, parse_time
from keyturn_workers.core.erasure import ASKED_FOR, HOLDS_FOR, Erasure, KeyState
from keyturn_workers.core.keyring import (
    Keyring,
    retire_old_keys,
    rotate,
    with_evidence,
)
from keyturn_workers.core.keyring_erasure import (
    MAX_ERASED_SECRETS,
    begin_erasure,
    check_erasable,
    check_erasure_order,
    erase,
    judge_erasure,
    refuse_erasure,
)
from keyturn_workers.core.keyring_record import keyring_from_json, keyring_to_json
from tests.unit.keyturn_workers.factories import AT, ORIGIN, keyring, turned_to

if TYPE_CHECKING:
    from collections.abc import Callable

_BEGAN: Final = parse_time(AT)
_ERASURE: Final = Erasure(
    "e7a5e000-0000-4000-8000-000000000001",
    "ops",
    "ab" * 32,
    AT,
    AT,
    "the end",
    "d" * 64,
)


def _with_keys(count: int = 1) -> Keyring:
    """A keyring whose every wrap needs one of these secrets."""
    ring = keyring()
    for number in range(count):
        ring = turned_to(ring, Secret(bytes([number]) * 32), f"key-{number}")
    return retire_old_keys(ring) if count == 1 else _without_first(ring)


def _without_first(ring: Keyring) -> Keyring:
    first, *others = ring.history
    return replace(ring, history=(replace(first, kek=None), *others))


def _states(ring: Keyring, state: KeyState) -> dict[str, KeyState]:
    return {key.secret_id: state for key in ring.customer_keys.values()}


def _erased(ring: Keyring) -> Keyring:
    states = _states(ring, KeyState.MISSING)
    return erase(ring, _ERASURE.with_answers(states, _BEGAN))


@pytest.mark.parametrize(
    "make",
    [
        lambda ring: begin_erasure(ring, _ERASURE),
        lambda ring: begin_erasure(ring, replace(_ERASURE, proven_by=None, reason="")),
        _erased,
        lambda ring: with_evidence(_erased(ring), "e" * 64),
        lambda ring: refuse_erasure(ring, AT),
        lambda ring: replace(ring, unproven=True),
    ],
    ids=["erasing", "unproven erasing", "erased", "with evidence", "refused", "unproven"],
)
@pytest.mark.parametrize("keys", [1, 3])
def test_a_keyring_reads_back(make: Callable[[Keyring], Keyring], keys: int) -> None:
    ring = make(_with_keys(keys))
    assert keyring_from_json("acme", "m1", keyring_to_json(ring)) == ring


def test_an_erased_keyring_holds_no_kek_and_keeps_its_customer_keys() -> None:
    ring = _with_keys(3)
    erased = _erased(ring)
    assert erased.is_erased
    assert [entry.kek for entry in (*erased.history, erased.current)] == [None] * 4
    assert erased.customer_keys == ring.customer_keys
    with pytest.raises(CorruptObjectError):
        erased.desired(Secret(bytes(32)))


def _change(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.update(changes)


def _answers(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda fields: change(fields["answers"])


def _every(answers: dict[str, Any], **changes: Any) -> None:
    for answer in answers.values():
        answer.update(changes)


@pytest.mark.parametrize(
    "change",
    [
        _change(request_id="5"),
        _change(request_id=None),
        _change(publisher="Ops"),
        _change(request="AB" * 32),
        _change(proven_by="d" * 63),
        _change(proven_by=7),
        _change(reason="a" * 501),
        _change(reason=None),
        _change(requested_at="yesterday"),
        _change(began_at=None),
        _change(answers={}),
        _answers(dict.popitem),
        _answers(lambda answers: answers.update({"f" * 16: next(iter(answers.values()))})),
        _answers(lambda answers: answers.update({"F" * 16: answers.popitem()[1]})),
        _answers(lambda answers: _every(answers, state="given")),
        _answers(lambda answers: _every(answers, state="undecided")),
        _answers(lambda answers: _every(answers, state=None)),
        _answers(lambda answers: _every(answers, at="yesterday")),
    ],
)
def test_a_malformed_erasure_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    document = copy.deepcopy(keyring_to_json(_erased(_with_keys(2))))
    change(document["erased"])
    _refused(document)


@pytest.mark.parametrize("missing", asdict(_ERASURE))
def test_every_field_of_an_erasure_is_required(missing: str) -> None:
    document = copy.deepcopy(keyring_to_json(_erased(_with_keys())))
    del document["erased"][missing]
    _refused(document)


def test_a_keyring_that_contradicts_its_erasure_is_refused() -> None:
    ring = _with_keys()
    open_, erasing = keyring_to_json(ring), keyring_to_json(begin_erasure(ring, _ERASURE))
    erased = keyring_to_json(_erased(ring))
    _refused({**open_, "erased": erased["erased"]})  # it has a KEK
    _refused({**erased, "kek": open_["kek"]})
    _refused({**open_, "kek": None})
    _refused({**erasing, "kek": None})
    _refused({**erasing, "erased": erasing["erasing"]})
    _refused({**open_, "erasing": erased["erased"]})
    for name, value in (("erasure_refused_at", "yesterday"), ("unproven", "yes")):
        _refused({**open_, name: value})


def _refused(document: dict[str, Any]) -> None:
    with pytest.raises(CorruptObjectError):
        keyring_from_json("acme", "m1", document)


@pytest.mark.parametrize(
    ("ring", "problem"),
    [
        (keyring(), "no customer key"),
        (turned_to(keyring(), Secret(bytes(32))), "generation 1 need no customer key"),
        (replace(_with_keys(), unproven=True), "sweep the project"),
        (_with_keys(MAX_ERASED_SECRETS + 1), "wraps of 9 generations"),
    ],
)
def test_what_is_not_proven_to_need_a_customer_key_is_not_erased(
    ring: Keyring, problem: str
) -> None:
    with pytest.raises(GenerationMismatchError, match=problem):
        check_erasable(ring)


@pytest.mark.parametrize("keys", [1, 2, MAX_ERASED_SECRETS])
def test_a_project_whose_every_wrap_needs_a_customer_key_may_be_erased(keys: int) -> None:
    check_erasable(_with_keys(keys))


def test_an_older_request_erases_nothing() -> None:
    ring, second = _with_keys(), timedelta(seconds=1)
    longest_ago = _BEGAN - timedelta(days=8)
    check_erasure_order(ring, format_time(_BEGAN), longest_ago)
    refused = refuse_erasure(ring, format_time(_BEGAN + second))
    # A refusal of an earlier request takes back no later one.
    assert refuse_erasure(refused, format_time(_BEGAN)) == refused
    check_erasure_order(refused, format_time(_BEGAN + 2 * second), longest_ago)
    for case, at in (
        (refused, _BEGAN + second),
        (refused, _BEGAN),
        (ring, _BEGAN - second),  # before the newest rotation
        (ring, longest_ago - second),
    ):
        with pytest.raises(GenerationMismatchError):
            check_erasure_order(case, format_time(at), longest_ago)


@pytest.mark.parametrize("sign", [1, -1])
def test_erasing_holds_for_its_time_by_a_date_that_may_be_wrong(sign: int) -> None:
    moment = timedelta(seconds=1)
    assert _ERASURE.holds_at(_BEGAN + sign * HOLDS_FOR)
    assert not _ERASURE.holds_at(_BEGAN + sign * (HOLDS_FOR + moment))
    assert not _ERASURE.is_over_at(_BEGAN + sign * ASKED_FOR)
    assert _ERASURE.is_over_at(_BEGAN + sign * (ASKED_FOR + moment))
    done = _ERASURE.with_answers({"0" * 16: KeyState.DISABLED}, _BEGAN)
    assert done.holds_at(_BEGAN + timedelta(days=10_000))


def test_all_stores_must_say_that_their_keys_are_gone() -> None:
    ring = begin_erasure(_with_keys(2), _ERASURE)
    gone = _states(ring, KeyState.DISABLED)
    first = next(iter(gone))
    judged = judge_erasure(ring, gone, _BEGAN)
    assert judged is not None
    assert judged.states == gone
    assert judge_erasure(ring, {**gone, first: KeyState.UNDECIDED}, _BEGAN) is None
    late = _BEGAN + ASKED_FOR + timedelta(seconds=1)
    for state, now in ((KeyState.GIVEN, _BEGAN), (KeyState.UNDECIDED, late)):
        with pytest.raises(GenerationMismatchError):
            judge_erasure(ring, {**gone, first: state}, now)
    # The stores of an erased project are asked once.
    with pytest.raises(GenerationMismatchError):
        judge_erasure(_erased(ring), {**gone, first: KeyState.UNDECIDED}, _BEGAN)


def test_a_rotation_ends_an_erasure_that_no_longer_holds() -> None:
    ring = begin_erasure(_with_keys(), _ERASURE)
    after = rotate(
        ring,
        kek=Secret(bytes([9]) * 32),
        rotation_id="c4d9b7aa-1f0e-4a57-b1d2-93e86a7f4c33",
        requested_at=AT,
        at=AT,
        origin=ORIGIN,
    )
    assert after.erasure is None
