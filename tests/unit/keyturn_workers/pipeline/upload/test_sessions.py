"""Transport keys under a publisher's session: opened once, remembered within bounds (SPEC 6.4)."""

from __future__ import annotations

import copy
import os
import pickle
from dataclasses import dataclass, field
from typing import Final

import pytest

from keyturn.crypto import IntakeKey, from_base64, seal, session_info, to_base64, upload_info
from keyturn.errors import BadSealError, UnknownIntakeKeyError
from keyturn.messages import SealedKey
from keyturn_workers.pipeline.upload.sessions import OpenedSessions
from tests.unit.keyturn_workers.pipeline.upload.bench import DATA, UPLOAD_ID, bench, request

INFO: Final = upload_info(UPLOAD_ID, "acme", "k")
KEY: Final = bytes(range(32))
SEED: Final = bytes(32)


class CountingKey(IntakeKey):
    """An intake key that counts what it is asked to open."""

    opens = 0

    def open(self, ciphertext: bytes, info: bytes) -> bytes:
        self.opens += 1
        return super().open(ciphertext, info)


def intake(seed: bytes = SEED) -> CountingKey:
    key = CountingKey.from_seed(seed)
    assert isinstance(key, CountingKey)
    return key


@dataclass(frozen=True)
class Session:
    """A publisher's session, as a publisher in another language would make it."""

    publisher: str = "api"
    deployment: str = "test"
    intake_key: str = "main"
    seed: bytes = SEED
    secret: bytes = field(default_factory=lambda: os.urandom(32))
    sealed: str = field(init=False)

    def __post_init__(self) -> None:
        public_key = IntakeKey.from_seed(self.seed).public_key
        info = session_info(self.deployment, self.publisher)
        object.__setattr__(self, "sealed", to_base64(public_key.seal(self.secret, info)))

    def seal(self, key: bytes = KEY, info: bytes = INFO) -> SealedKey:
        ciphertext = to_base64(seal(self.secret, info, key))
        return SealedKey(intake_key=self.intake_key, session=self.sealed, ciphertext=ciphertext)


def damaged(text: str, at: int) -> str:
    data = bytearray(from_base64(text))
    data[at] ^= 1
    return to_base64(bytes(data))


async def test_an_upload_under_a_session_is_stored() -> None:
    on = bench()
    session = Session()
    for number in range(3):
        upload_id = f"2f6c9a0e-1111-4111-8111-11111111111{number}"
        sent = request(on, upload_id=upload_id)
        assert sent.sealed_key is not None
        key = on.context.sessions.open_key(
            sent.sealed_key, upload_info(upload_id, "acme", "k"), "api"
        )
        resealed = session.seal(key, upload_info(upload_id, "acme", f"k{number}"))
        changes = {"sealed_key": resealed, "key": f"k{number}"}
        await on.serve(sent.model_copy(update=changes))
        assert await on.exists(f"acme/k{number}")
    head = await on.storage.head("acme/k0")
    assert head.size_bytes > len(DATA)


def test_a_session_is_opened_once_for_any_number_of_keys() -> None:
    key = intake()
    opened = OpenedSessions("test", {"main": key})
    session = Session()
    for number in range(50):
        info = upload_info(UPLOAD_ID, "acme", f"k{number}")
        transport_key = os.urandom(32)
        assert opened.open_key(session.seal(transport_key, info), info, "api") == transport_key
    assert key.opens == 1


def test_a_key_sealed_without_a_session_opens_as_before() -> None:
    key = intake()
    opened = OpenedSessions("test", {"main": key})
    sealed = to_base64(key.public_key.seal(KEY, INFO))
    for _ in range(2):
        one_shot = SealedKey(intake_key="main", ciphertext=sealed)
        assert opened.open_key(one_shot, INFO, "api") == KEY
    assert key.opens == 2


@pytest.mark.parametrize("known", [False, True])
def test_a_session_is_its_publishers_alone(*, known: bool) -> None:
    """The other publisher signs the same session and ciphertext as its own."""
    opened = OpenedSessions("test", {"main": intake()})
    sealed = Session(publisher="api").seal()
    if known:
        opened.open_key(sealed, INFO, "api")
    with pytest.raises(BadSealError):
        opened.open_key(sealed, INFO, "web")


def test_a_session_is_its_deployments_alone() -> None:
    sealed = Session(deployment="staging").seal()
    with pytest.raises(BadSealError):
        OpenedSessions("test", {"main": intake()}).open_key(sealed, INFO, "api")


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(
    "info",
    [
        upload_info("2f6c9a0e-2222-4222-8222-222222222222", "acme", "k"),
        upload_info(UPLOAD_ID, "other", "k"),
        upload_info(UPLOAD_ID, "acme", "kx"),
    ],
)
def test_a_key_under_a_session_is_its_uploads_alone(info: bytes, *, known: bool) -> None:
    opened = OpenedSessions("test", {"main": intake()})
    session = Session()
    if known:
        opened.open_key(session.seal(), INFO, "api")
    with pytest.raises(BadSealError):
        opened.open_key(session.seal(), info, "api")


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("at", [0, 1119, 1120, -1])
def test_a_damaged_session_is_refused(at: int, *, known: bool) -> None:
    opened = OpenedSessions("test", {"main": intake()})
    sealed = Session().seal()
    assert sealed.session is not None
    if known:
        opened.open_key(sealed, INFO, "api")
    with pytest.raises(BadSealError):
        opened.open_key(
            sealed.model_copy(update={"session": damaged(sealed.session, at)}), INFO, "api"
        )


@pytest.mark.parametrize("at", [0, 24, 56, -1])
def test_a_damaged_key_under_a_session_is_refused(at: int) -> None:
    opened = OpenedSessions("test", {"main": intake()})
    sealed = Session().seal()
    with pytest.raises(BadSealError):
        opened.open_key(
            sealed.model_copy(update={"ciphertext": damaged(sealed.ciphertext, at)}), INFO, "api"
        )
    assert opened.open_key(sealed, INFO, "api") == KEY


@pytest.mark.parametrize("text", ["", "AAAA", to_base64(bytes(1168))])
def test_bytes_that_are_no_session_are_refused(text: str) -> None:
    sealed = Session().seal().model_copy(update={"session": text})
    with pytest.raises(BadSealError):
        OpenedSessions("test", {"main": intake()}).open_key(sealed, INFO, "api")


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_session_secret_and_a_key_have_32_bytes(length: int) -> None:
    opened = OpenedSessions("test", {"main": intake()})
    public_key = IntakeKey.from_seed(SEED).public_key
    sealed = to_base64(public_key.seal(bytes(length), session_info("test", "api")))
    with pytest.raises(BadSealError, match="not 32 bytes"):
        opened.open_key(Session().seal().model_copy(update={"session": sealed}), INFO, "api")
    with pytest.raises(BadSealError, match="not 32 bytes"):
        opened.open_key(Session().seal(bytes(length)), INFO, "api")


def test_neither_form_passes_for_the_other() -> None:
    """A key in place of a session, and a session in place of a key: the labels differ."""
    key = intake()
    opened = OpenedSessions("test", {"main": key})
    session = Session()
    with pytest.raises(BadSealError):
        opened.open_key(SealedKey(intake_key="main", ciphertext=session.sealed), INFO, "api")
    one_shot = to_base64(key.public_key.seal(session.secret, INFO))
    with pytest.raises(BadSealError):
        opened.open_key(session.seal().model_copy(update={"session": one_shot}), INFO, "api")


def test_the_least_recently_used_session_of_a_publisher_is_forgotten() -> None:
    key = intake()
    opened = OpenedSessions("test", {"main": key}, per_publisher=3)
    sessions = [Session() for _ in range(4)]
    for at in (0, 1, 2, 0, 3):  # 1 has not been used for longest when 3 needs its place
        opened.open_key(sessions[at].seal(), INFO, "api")
    assert key.opens == 4
    for at in (0, 2, 3):
        opened.open_key(sessions[at].seal(), INFO, "api")
    assert key.opens == 4
    opened.open_key(sessions[1].seal(), INFO, "api")  # a miss costs one opening
    assert key.opens == 5


def test_no_publisher_evicts_the_sessions_of_another() -> None:
    key = intake()
    opened = OpenedSessions("test", {"main": key}, per_publisher=3)
    session = Session(publisher="api")
    opened.open_key(session.seal(), INFO, "api")
    for _ in range(10):
        opened.open_key(Session(publisher="web").seal(), INFO, "web")
    before = key.opens
    opened.open_key(session.seal(), INFO, "api")
    assert key.opens == before


def test_what_does_not_open_is_not_remembered() -> None:
    """Made-up sessions, of the same publisher too, evict none."""
    key = intake()
    opened = OpenedSessions("test", {"main": key}, per_publisher=3)
    session = Session()
    opened.open_key(session.seal(), INFO, "api")
    for number in range(20):
        made_up = to_base64(number.to_bytes(2) + bytes(1166))
        with pytest.raises(BadSealError):
            opened.open_key(session.seal().model_copy(update={"session": made_up}), INFO, "api")
    before = key.opens
    opened.open_key(session.seal(), INFO, "api")
    assert key.opens == before


def test_a_session_ends_with_its_intake_key() -> None:
    """Another key of the same name opens none of it, and one that comes back opens it again."""
    first, second = intake(), intake(b"r" * 32)
    held = {"main": first, "second": second}
    opened = OpenedSessions("test", held)
    sealed = Session().seal()
    assert opened.open_key(sealed, INFO, "api") == KEY
    with pytest.raises(BadSealError):
        opened.open_key(sealed.model_copy(update={"intake_key": "second"}), INFO, "api")
    del held["main"]
    with pytest.raises(UnknownIntakeKeyError):
        opened.open_key(sealed, INFO, "api")
    held["main"] = second
    with pytest.raises(BadSealError):
        opened.open_key(sealed, INFO, "api")
    del first
    held["main"] = again = intake()
    assert opened.open_key(sealed, INFO, "api") == KEY
    assert again.opens == 1


def test_no_session_secret_can_be_printed() -> None:
    opened = OpenedSessions("test", {"main": intake()})
    session = Session(secret=b"secret of 32 bytes, readable txt")
    opened.open_key(session.seal(), INFO, "api")
    shown = repr(vars(opened)) + repr({**{k: dict(v) for k, v in opened._opened.items()}})
    assert "api" in shown
    assert "readable" not in shown
    with pytest.raises(TypeError):
        pickle.dumps(copy.copy(next(iter(opened._opened.values()))["api"]))
