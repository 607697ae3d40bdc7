"""A publisher's sealing sessions: bounded in time and use, and opened by the workers' half."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from keyturn.crypto import IntakeKey, Secret, from_base64, open_sealed, session_info, upload_info
from keyturn.publisher.requests import new_id
from keyturn.publisher.sessions import SealingSession
from keyturn.settings import NamedIntakeKey
from keyturn_workers.pipeline.upload.sessions import OpenedSessions
from tests.unit.keyturn.publisher.test_requests import INTAKE, SETTINGS

KEY: Final = Secret(bytes(range(32)))
INFO: Final = upload_info("2f6c9a0e-1111-4111-8111-111111111111", "acme", "k")


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_workers_open_what_a_session_sealed() -> None:
    session = SealingSession(SETTINGS)
    opened = OpenedSessions("test", {"main": INTAKE})
    used = set()
    for number in range(20):
        info = upload_info(new_id(), "acme", f"reports/{number}")
        key = os.urandom(32)
        sealed = session.seal(Secret(key), info)
        assert (sealed.intake_key, opened.open_key(sealed, info, "billing")) == ("main", key)
        used.add(sealed.session)
    assert len(used) == 1


def test_a_session_is_sealed_for_its_deployment_and_publisher() -> None:
    sealed = SealingSession(SETTINGS).seal(KEY, INFO)
    assert sealed.session is not None
    secret = INTAKE.open(from_base64(sealed.session), session_info("test", "billing"))
    assert len(secret) == 32
    assert open_sealed(secret, INFO, from_base64(sealed.ciphertext)) == KEY.reveal()


def test_another_intake_key_has_a_session_of_its_own() -> None:
    other = IntakeKey.from_seed(b"r" * 32)
    named = NamedIntakeKey("main", other.public_key)
    rotated = SETTINGS.model_copy(update={"intake_public_key": named})
    before, after = SealingSession(SETTINGS), SealingSession(rotated)
    assert before.seal(KEY, INFO).session != after.seal(KEY, INFO).session
    opened = OpenedSessions("test", {"main": other})
    assert opened.open_key(after.seal(KEY, INFO), INFO, "billing") == KEY.reveal()


def test_a_session_ends_after_65536_messages() -> None:
    session = SealingSession(SETTINGS, now_s=Clock())
    first = session.seal(KEY, INFO).session
    for _ in range(2**16 - 2):
        session.seal(KEY, INFO)
    assert session.seal(KEY, INFO).session == first
    assert session.seal(KEY, INFO).session != first


def test_a_session_ends_after_ten_minutes() -> None:
    clock = Clock()
    session = SealingSession(SETTINGS, now_s=clock)
    first = session.seal(KEY, INFO).session
    clock.now_s += 599.999
    assert session.seal(KEY, INFO).session == first
    clock.now_s += 0.001
    assert session.seal(KEY, INFO).session != first


@given(
    max_messages=st.integers(1, 6),
    pauses=st.lists(st.sampled_from([0, 0, 0, 1, 150, 299, 300, 599, 600, 601]), max_size=40),
)
def test_no_session_outlives_its_bounds_and_none_ends_before(
    max_messages: int, pauses: list[float]
) -> None:
    """Whatever the pauses between uploads are."""
    clock = Clock()
    session = SealingSession(SETTINGS, max_messages=max_messages, now_s=clock)
    used: dict[str, list[float]] = defaultdict(list)
    order: list[str] = []
    for pause in pauses:
        clock.now_s += pause
        sealed = session.seal(KEY, INFO)
        assert sealed.session is not None
        used[sealed.session].append(clock.now_s)
        order.append(sealed.session)
    for times in used.values():
        assert len(times) <= max_messages
        assert times[-1] - times[0] < 600
    firsts = list(used)
    assert order == sorted(order, key=firsts.index)  # none comes back
    for ended, following in itertools.pairwise(firsts):
        is_spent = len(used[ended]) == max_messages
        assert is_spent or used[following][0] - used[ended][0] >= 600


def test_no_session_secret_can_be_printed() -> None:
    session = SealingSession(SETTINGS)
    sealed = session.seal(KEY, INFO)
    assert sealed.session is not None
    secret = INTAKE.open(from_base64(sealed.session), session_info("test", "billing"))
    assert repr(secret) not in repr(session._session)
    assert "Secret(…)" in repr(session._session)
