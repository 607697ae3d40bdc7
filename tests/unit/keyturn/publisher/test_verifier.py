"""Which keys an event may be signed with (SPEC 6.7, 6.10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import SigningKey, VerifyKey
from keyturn.publisher.event_stream import StreamRecord, Verifier
from tools.generate import pretty
from tools.generate.examples import events

if TYPE_CHECKING:
    from collections.abc import Callable

_OLD, _NEW, _FORGED = (SigningKey.from_seed(seed * 32) for seed in (b"o", b"n", b"f"))
_BODY = pretty(next(iter(events()["upload.stored"].values()))).encode()


def _public(*keys: SigningKey) -> list[VerifyKey]:
    return [VerifyKey.from_bytes(key.public_bytes) for key in keys]


def _told(key: SigningKey, key_id: str) -> StreamRecord:
    return StreamRecord(0, _BODY, key.sign_event("test", _BODY), key_id)


@pytest.mark.parametrize("named", [_OLD.id, _NEW.id, _FORGED.id, "", "no id"])
@pytest.mark.parametrize("key", [_OLD, _NEW], ids=["old", "new"])
def test_any_listed_key_may_have_signed_whatever_the_header_names(
    key: SigningKey, named: str
) -> None:
    """The header is not signed: it decides the order of the tries, and nothing else."""
    verifier = Verifier("test", _public(_OLD, _NEW))
    assert verifier.event(_told(key, named)) is not None
    assert verifier.refused == 0
    for believed_nothing in (
        verifier.event(_told(_FORGED, named)),
        Verifier("test", _public(_FORGED)).event(_told(key, named)),
        Verifier("elsewhere", _public(_OLD, _NEW)).event(_told(key, named)),
    ):
        assert believed_nothing is None
    assert verifier.refused == 1


def test_the_key_that_is_named_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    verify: Callable[..., None] = VerifyKey.verify_event

    def noted(key: VerifyKey, *arguments: object) -> None:
        tried.append(key.id)
        verify(key, *arguments)

    monkeypatch.setattr(VerifyKey, "verify_event", noted)
    verifier = Verifier("test", _public(_OLD, _NEW))
    assert verifier.event(_told(_NEW, _NEW.id)) is not None
    assert verifier.event(_told(_NEW, "")) is not None
    assert tried == [_NEW.id, _OLD.id, _NEW.id]
