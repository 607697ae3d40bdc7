"""A chain is whole, in order, of one project, and by keys that were good then (SPEC 15.1, 15.2).

Each broken variant of a good chain is refused, with the error of its kind.
"""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import pytest

from keyturn.crypto import to_base64
from keyturn.errors import (
    CutEvidenceError,
    EvidenceError,
    ForeignEvidenceError,
    ForgedEvidenceError,
    MalformedEvidenceError,
    ReorderedEvidenceError,
    ReplayedEvidenceError,
    RetiredEventKeyError,
    UnknownEventKeyError,
)
from keyturn.evidence import in_chain_order, keys_before, parse, verify_chain
from tests.unit.keyturn.evidence.shared import (
    FIRST_KEY,
    PUBLIC_KEYS,
    SECOND_KEY,
    chain_of,
    follow,
    public,
)

CHAIN = chain_of(*[FIRST_KEY] * 4)


def refused(
    files: list[bytes], kind: type[EvidenceError], index: int | None = None, **options: Any
) -> None:
    """Check that a chain is refused with this kind of error, at this file."""
    with pytest.raises(kind) as caught:
        verify_chain(files, PUBLIC_KEYS, **options)
    assert type(caught.value) is kind
    assert caught.value.index == index


def test_a_whole_chain_verifies() -> None:
    for length in range(1, 5):
        chain = verify_chain(
            CHAIN[:length],
            public(FIRST_KEY),
            deployment="default",
            project="acme",
            newest=parse(CHAIN[length - 1]).digest,
        )
        assert [evidence.envelope for evidence in chain] == CHAIN[:length]


def test_a_forged_file_is_refused() -> None:
    forged = json.loads(CHAIN[2])
    forged["signatures"][0]["sig"] = to_base64(bytes(64))
    envelope = json.dumps(forged, sort_keys=True, separators=(",", ":")).encode()
    refused([*CHAIN[:2], envelope, CHAIN[3]], ForgedEvidenceError, 2)


def test_a_key_that_is_not_given_is_refused() -> None:
    chain = chain_of(FIRST_KEY, SECOND_KEY)
    with pytest.raises(UnknownEventKeyError) as caught:
        verify_chain(chain, public(FIRST_KEY))
    assert caught.value.index == 1


def test_a_malformed_file_is_refused() -> None:
    refused([*CHAIN[:3], b"{}"], MalformedEvidenceError, 3)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_cut_chain_is_refused(missing: int) -> None:
    refused(CHAIN[:missing] + CHAIN[missing + 1 :], CutEvidenceError, missing)


def test_a_chain_cut_at_its_end_is_refused_by_the_newest_digest() -> None:
    verify_chain(CHAIN[:3], PUBLIC_KEYS)
    refused(CHAIN[:3], CutEvidenceError, newest=parse(CHAIN[3]).digest)


def test_no_evidence_is_none() -> None:
    refused([], CutEvidenceError)


@pytest.mark.parametrize("order", list(permutations(range(4)))[1:])
def test_another_order_is_refused(order: tuple[int, ...]) -> None:
    files = [CHAIN[index] for index in order]
    wrong = next(index for index, each in enumerate(order) if index != each)
    refused(files, ReorderedEvidenceError, wrong)
    assert in_chain_order(files) == CHAIN


@pytest.mark.parametrize("again", [0, 1, 3])
def test_the_same_file_twice_is_refused(again: int) -> None:
    refused([*CHAIN, CHAIN[again]], ReplayedEvidenceError, 4)


def test_a_fork_is_refused() -> None:
    other = follow(CHAIN[:3], kind="sweep")
    refused([*CHAIN, other], ReplayedEvidenceError, 4)
    second_start = follow([], kind="sweep")
    refused([*CHAIN, second_start], ReplayedEvidenceError, 4)


@pytest.mark.parametrize("subject", [{"deployment": "other"}, {"project": "acme-2"}])
def test_foreign_evidence_is_refused(subject: dict[str, Any]) -> None:
    foreign = follow(CHAIN, **subject)
    refused([*CHAIN, foreign], ForeignEvidenceError, 4)
    alone = follow([], **subject)
    refused([alone], ForeignEvidenceError, 0, deployment="default", project="acme")
    verify_chain([alone], PUBLIC_KEYS)


def test_a_lower_generation_is_refused() -> None:
    refused([*CHAIN, follow(CHAIN, generation=2)], MalformedEvidenceError, 4)


# Event keys that are replaced.


def test_event_keys_may_alternate_while_both_are_held() -> None:
    chain = chain_of(FIRST_KEY, SECOND_KEY, FIRST_KEY, SECOND_KEY)
    verified = verify_chain(chain, public(SECOND_KEY, FIRST_KEY))
    (use,) = verified[3].predicate.event_keys
    assert (use.keyid, use.last) == (FIRST_KEY.id, verified[2].digest)
    assert not use.retired


def test_a_retired_key_is_listed_with_its_last_evidence_from_then_on() -> None:
    chain = chain_of(FIRST_KEY, FIRST_KEY, SECOND_KEY)
    chain.append(follow(chain, SECOND_KEY, held=(SECOND_KEY,)))
    chain.append(follow(chain, SECOND_KEY, held=(SECOND_KEY, FIRST_KEY)))
    verified = verify_chain(chain, public(SECOND_KEY, FIRST_KEY))
    lasts = [[(use.last, use.retired) for use in each.predicate.event_keys] for each in verified]
    last = verified[1].digest
    assert lasts == [[], [], [(last, False)], [(last, True)], [(last, True)]]


def test_a_retired_key_signs_nothing_more() -> None:
    chain = chain_of(FIRST_KEY)
    chain.append(follow(chain, SECOND_KEY, held=(SECOND_KEY,)))
    refused([*chain, follow(chain, FIRST_KEY)], RetiredEventKeyError, 2)


def test_a_thief_of_a_retired_key_continues_no_chain_by_leaving_out_what_retires_it() -> None:
    """Every file of his verifies, and so does its place: only the end shows who signs now."""
    honest = chain_of(FIRST_KEY, FIRST_KEY)
    retiring = follow(honest, SECOND_KEY, held=(SECOND_KEY,))
    forged = [*honest, follow(honest, FIRST_KEY, generation=4)]
    current_first = public(SECOND_KEY, FIRST_KEY)
    verify_chain([*honest, retiring], current_first)
    for files in (honest, forged, [*forged, follow(forged, FIRST_KEY, generation=5)]):
        with pytest.raises(RetiredEventKeyError) as caught:
            verify_chain(files, current_first)
        assert caught.value.index == 0
        for way_out in ("--newest", "the keyring and the completion event", "sweep"):
            assert way_out in str(caught.value)
    with pytest.raises(CutEvidenceError):
        verify_chain(forged, current_first, newest=parse(retiring).digest)


def test_the_newest_digest_shows_that_an_earlier_keys_file_is_the_last() -> None:
    """The event key was replaced, and nothing was rotated or swept since."""
    chain = chain_of(FIRST_KEY, SECOND_KEY, FIRST_KEY)
    current_first = public(SECOND_KEY, FIRST_KEY)
    verify_chain(chain, current_first, newest=parse(chain[-1]).digest)
    with pytest.raises(RetiredEventKeyError) as caught:
        verify_chain(chain, current_first)
    assert caught.value.index == 2


def test_a_retired_key_cannot_be_made_good_again() -> None:
    chain = chain_of(FIRST_KEY)
    chain.append(follow(chain, SECOND_KEY, held=(SECOND_KEY,)))
    (use,) = parse(chain[1]).predicate.event_keys
    held = use.model_copy(update={"retired": False}).model_dump()
    for listed in ([held], []):
        again = follow(chain, SECOND_KEY, event_keys=listed)
        refused([*chain, again], MalformedEvidenceError, 2)


def test_the_list_of_keys_must_be_that_of_the_chain() -> None:
    chain = chain_of(FIRST_KEY)
    good = follow(chain, SECOND_KEY)
    (use,) = [use.model_dump() for use in parse(good).predicate.event_keys]
    verify_chain([*chain, good], public(SECOND_KEY, FIRST_KEY))
    for listed in ([], [{**use, "last": "0" * 64}], [use, {**use, "keyid": "f" * 16}]):
        wrong = follow(chain, SECOND_KEY, event_keys=listed)
        refused([*chain, wrong], MalformedEvidenceError, 1)


def test_the_first_evidence_lists_no_keys() -> None:
    assert keys_before(None, FIRST_KEY.id, []) == []


# Order.


def test_what_is_in_no_chain_comes_last() -> None:
    assert in_chain_order([CHAIN[3], CHAIN[1], CHAIN[0]]) == [CHAIN[0], CHAIN[1], CHAIN[3]]
    assert in_chain_order([CHAIN[1], CHAIN[0], CHAIN[0]]) == [CHAIN[0], CHAIN[1], CHAIN[0]]
    assert in_chain_order([]) == []


def test_order_needs_files_of_evidence() -> None:
    with pytest.raises(MalformedEvidenceError):
        in_chain_order([*CHAIN, b"{}"])
