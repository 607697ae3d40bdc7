"""The erasure of a project: what may be erased, and the keyring at each step (SPEC 8.8). Pure."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

from keyturn.errors import GenerationMismatchError
from keyturn.identifiers import parse_time
from keyturn_workers.core.erasure import FRESH_FOR, Erasure, KeyState
from keyturn_workers.core.keyring import Generation, Keyring

MAX_ERASED_SECRETS: Final = 8
"""The most secrets that one erasure covers: evidence has what each store encrypted."""


def check_erasable(keyring: Keyring) -> None:
    """Check that every wrap of the project needs a customer secret, as far as is proven (SPEC 8.8).

    Raises:
        GenerationMismatchError: not so; the text says what to do.
    """
    if not keyring.customer_keys:
        raise GenerationMismatchError(
            "the project has no customer key, so nothing shows that it no longer opens: delete its "
            "objects"
        )
    for entry in (*keyring.history, keyring.current):
        if entry.kek is not None and entry.customer_key is None:
            raise GenerationMismatchError(
                f"wraps of generation {entry.generation} need no customer key: wait for a clean "
                "end of the rotation after it, and ask again"
            )
    if keyring.unproven:
        raise GenerationMismatchError(
            "the project's enrollment took objects over, or its keyring was recovered, and no "
            "sweep has ended clean since: sweep the project, and ask again"
        )
    if len({key.secret_id for key in keyring.customer_keys.values()}) > MAX_ERASED_SECRETS:
        raise GenerationMismatchError(
            f"wraps of {len(keyring.customer_keys)} generations may exist: wait for a clean end of "
            "the newest rotation, and ask again"
        )


def check_erasure_order(keyring: Keyring, requested_at: str, not_before: datetime) -> None:
    """Check that an erasure is young, and that nothing that was requested later contradicts it.

    A record of sweeps can be rolled back to a state in which a refused erasure is open; a keyring
    cannot (SPEC 5.5).

    Raises:
        GenerationMismatchError: it is older than `not_before`, or it or a later one was refused,
            or a rotation that was requested later was accepted.
    """
    at, refused_at = parse_time(requested_at), keyring.erasure_refused_at
    if at < not_before:
        raise GenerationMismatchError("the erasure was requested too long ago")
    if refused_at is not None and at <= parse_time(refused_at):
        raise GenerationMismatchError(
            "this erasure, or one requested later, was refused: ask again by a new request"
        )
    if at < parse_time(keyring.current.requested_at):
        raise GenerationMismatchError("a rotation requested later was accepted already")


def check_held(erasure: Erasure, now: datetime) -> None:
    """Check that the project waits for its erasure, and will while answers of now are fresh.

    Raises:
        GenerationMismatchError: it does not: no step was made for too long.
    """
    if not (erasure.holds_at(now) and erasure.holds_at(now + FRESH_FOR)):
        raise GenerationMismatchError(
            "workers did not continue the erasure in time, and the project was in use again: ask "
            "again by a new request"
        )


def begin_erasure(keyring: Keyring, erasure: Erasure) -> Keyring:
    """The keyring while stores are asked whether its customer keys are gone."""
    return replace(keyring, erasure=erasure)


def refuse_erasure(keyring: Keyring, requested_at: str) -> Keyring:
    """The keyring after an erasure was refused: no earlier request may erase the project."""
    times = [requested_at, keyring.erasure_refused_at or requested_at]
    return replace(keyring, erasure=None, erasure_refused_at=max(times, key=parse_time))


def erase(keyring: Keyring, erasure: Erasure) -> Keyring:
    """The keyring of an erased project: only its customer keys say what it was."""

    def without_kek(entry: Generation) -> Generation:
        return replace(entry, kek=None)

    history = tuple(map(without_kek, keyring.history))
    return replace(keyring, current=without_kek(keyring.current), history=history, erasure=erasure)


def judge_erasure(
    keyring: Keyring, states: Mapping[str, KeyState], now: datetime
) -> Erasure | None:
    """The erasure after these answers of the stores; None if not all of them are known yet.

    Raises:
        GenerationMismatchError: a store gives a secret, or says nothing of a key for too long.
    """
    erasure = keyring.erasure
    if erasure is None:
        raise ValueError("the project is not being erased")
    keys = {key.secret_id: key for key in keyring.customer_keys.values()}
    given = [keys[each].name for each, state in states.items() if state is KeyState.GIVEN]
    if given:
        raise GenerationMismatchError(
            f"{given[0]} still gives its secret: disable or delete the key, and ask again"
        )
    silent = [key.name for each, key in keys.items() if not states[each].is_gone]
    if not silent:
        return erasure.with_answers(states, now)
    if erasure.is_done or erasure.is_over_at(now):
        raise GenerationMismatchError(
            f"{silent[0]}: its store does not say that the key is disabled or gone (a denied "
            "access says nothing): disable or delete the key, and ask again"
        )
    return None
