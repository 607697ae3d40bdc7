"""Small sealed things: what is not exactly what was sealed opens to nothing (SPEC 3.2, 4.3, 8.7).

The first byte names what is opened, the second the place that it is opened for; the rest is
the sealed bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyturn.crypto import (
    IntakeKey,
    SealError,
    Secret,
    SignatureError,
    SigningKey,
    VerifyKey,
    from_base64,
    open_record,
    open_tombstone,
    seal_record,
    seal_tombstone,
    to_base64,
    unwrap_dek,
    upload_info,
    wrap_dek,
)
from tests.fuzz.harness import Harness, check, same_each_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn.crypto import Role

_KEK: Final = Secret(bytes(range(32)))
_DEK: Final = bytes(range(32, 64))
_INTAKE: Final = IntakeKey.from_seed(bytes(32))
_SIGNING: Final = SigningKey.from_seed(bytes(32))
_VERIFY: Final = VerifyKey.from_bytes(_SIGNING.public_bytes)
_RECORD: Final = ".keyturn/keyrings/acme.json"
_AT: Final = "2026-11-24T10:00:00.000000Z"
_UPLOAD: Final = "2f6c9a0e-1111-4111-8111-111111111111"
_ALGORITHM: Final = "Cobblestone-256"
_PLACES: Final[tuple[tuple[Role, str, str, int], ...]] = (
    ("user", "acme", "k", 1),
    ("admin", "acme", "k", 1),
    ("user", "acme", "k", 2),
    ("user", "beta", "k", 1),
    ("user", "acme", "l", 1),
)


def _wrapped(place: int) -> bytes:
    role, project, key, generation = _PLACES[place]
    return wrap_dek(
        _KEK,
        role,
        algorithm=_ALGORITHM,
        project=project,
        object_key=key,
        generation=generation,
        dek=_DEK,
    )


with same_each_time():
    _WRAPS: Final = tuple(_wrapped(place) for place in range(len(_PLACES)))
    _WRAP: Final = _WRAPS[0]
    _SEALED_RECORD: Final = seal_record(_KEK, _RECORD, b"{}")
    _TOMBSTONE: Final = seal_tombstone(_KEK, "acme", "k", _AT)
# HPKE draws by itself: each run seals another one, and all of them open.
_SECRET: Final = _INTAKE.public_key.seal(_DEK, upload_info(_UPLOAD, "acme", "k"))
_SIGNATURE: Final = _SIGNING.sign_request("test", "api", b"body")


def _open_wrap(place: int, sealed: bytes) -> object:
    role, project, key, generation = _PLACES[place]
    return unwrap_dek(
        _KEK,
        role,
        algorithm=_ALGORITHM,
        project=project,
        object_key=key,
        generation=generation,
        wrap=sealed,
    )


def _open_record(place: int, sealed: bytes) -> object:
    return open_record(_KEK, (_RECORD, ".keyturn/keyrings/beta.json")[place % 2], sealed)


def _open_tombstone(place: int, sealed: bytes) -> object:
    return open_tombstone(_KEK, "acme", ("k", "l")[place % 2], sealed)


def _open_secret(place: int, sealed: bytes) -> object:
    return _INTAKE.open(sealed, upload_info(_UPLOAD, "acme", ("k", "l")[place % 2]))


def _verify(place: int, signature: bytes) -> object:
    publisher = ("api", "other")[place % 2]
    _VERIFY.verify_request("test", publisher, b"body", signature.decode("latin-1"))
    return "verified"


_OPENERS: Final[tuple[tuple[Callable[[int, bytes], object], bytes, object], ...]] = (
    (_open_wrap, _WRAP, _DEK),
    (_open_record, _SEALED_RECORD, b"{}"),
    (_open_tombstone, _TOMBSTONE, _AT),
    (_open_secret, _SECRET, _DEK),
    (_verify, _SIGNATURE.encode(), "verified"),
)


def run(data: bytes) -> str:
    """Open it, and read it as base64."""
    if len(data) < 2:
        return "too short"
    place, sealed = data[1] % len(_PLACES), data[2:]
    _check_base64(sealed.decode("latin-1"))
    opener, right, holds = _OPENERS[data[0] % len(_OPENERS)]
    try:
        opened = opener(place, sealed)
    except (SealError, SignatureError):
        return "refused"
    check(opened == holds, "another plaintext")
    rightly = _WRAPS[place] if opener is _open_wrap else right
    check(
        sealed == rightly or opener is _open_secret,
        "bytes that were never sealed for this place were opened",
    )
    check(opener is _open_wrap or place % 2 == 0, "opened in another place")
    return "opened"


def _check_base64(text: str) -> None:
    try:
        decoded = from_base64(text)
    except ValueError:
        return
    check(to_base64(decoded) == text, "bytes with two spellings")


def _seeds() -> list[bytes]:
    found = []
    for number, (_, right, _holds) in enumerate(_OPENERS):
        found += [bytes([number, place]) + right for place in (0, 1)]
    found += [bytes([0, place]) + _WRAPS[place] for place in range(1, len(_PLACES))]
    return [*found, bytes([0, 0]) + to_base64(_WRAP).encode()]


HARNESS: Final = Harness("wraps", run, _seeds)
