"""Records: raw, as a bucket writer leaves them, and sealed again, so that all is read (SPEC 5).

The first byte selects: the record's raw bytes, or JSON that is sealed here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

from keyturn.counts import Counts
from keyturn.crypto import Secret, record_kek, seal_record, to_base64
from keyturn.errors import CodedError
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import RequestOrigin
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import (
    AllRecord,
    CleanEnd,
    End,
    Failure,
    OpenPage,
    Origin,
    PartEnd,
    ProjectRecord,
    Result,
    Round,
    State,
    Walk,
    from_json,
    to_json,
)
from tests.fuzz.harness import Harness, check, code_of, same_each_time
from tests.unit.keyturn_workers import factories
from tools.harness.local_keys import (
    build_keyring,
    build_record,
    desired_state,
    parse_keyring,
    parse_record,
)

_MASTER_KEYS: Final = {"m1": Secret(bytes([1]) * 32), "m2": Secret(bytes([2]) * 32)}
_KEY: Final = keyring_s3_key("acme")
_RECORD_KEK: Final = record_kek(bytes([1]) * 32, "acme")
_SWEEP_ID: Final = "e0a4c6b8-7d92-4f31-8c55-2b9d0f6e1a74"
_ID: Final = "c4d9b7aa-1f0e-4a57-b1d2-93e86a7f4c33"
_KINDS: Final[tuple[type[Any], ...]] = (ProjectRecord, AllRecord, Result, PartEnd)


def _ring() -> Keyring:
    first, second, third = (
        replace(factories.generation(number, kek=Secret(bytes([number]) * 32)), rotation_id=_ID)
        for number in (1, 2, 3)
    )
    history = (replace(first, kek=None), second)
    origin = RequestOrigin("api", "a" * 64)
    return Keyring("acme", "m1", third, origin, lease_s=15, history=history, evidence="b" * 64)


with same_each_time():
    _RING: Final = _ring()
    _RAW: Final = build_keyring(_RING, _MASTER_KEYS)
_REST: Final = parse_record(_RAW, _KEY, "acme", _MASTER_KEYS)[1]
_SECRETS: Final = tuple(to_base64(kek.reveal())[:24] for kek in _RING.user_keks.values())


def run(data: bytes) -> str:
    """Read it as a keyring, or as a sweep's record."""
    if not data:
        return "too short"
    match data[0] % 3:
        case 0:
            return _raw(data[1:])
        case 1:
            return _keyring(_sealed(data[1:]))
    return _sweep(data[1:])


def _raw(body: bytes) -> str:
    try:
        ring = parse_keyring(body, "acme", _MASTER_KEYS)
    except CodedError as exc:
        _check_shows_nothing(exc)
        return code_of(exc, "corrupt_object", "unknown_master_key")
    check(ring == _RING, "a keyring that was never written")
    return "keyring"


def _sealed(payload: bytes) -> bytes:
    sealed = seal_record(_RECORD_KEK, _KEY, payload)
    outer = {"v": 1, "project": "acme", "master_key": "m1", "sealed": to_base64(sealed)}
    return json.dumps(outer).encode()


def _keyring(body: bytes) -> str:
    try:
        ring = parse_keyring(body, "acme", _MASTER_KEYS)
    except CodedError as exc:
        _check_shows_nothing(exc)
        return code_of(exc, "corrupt_object")
    check(
        parse_keyring(build_keyring(ring, _MASTER_KEYS), "acme", _MASTER_KEYS) == ring,
        "comes back changed",
    )
    desired = desired_state(ring, _MASTER_KEYS)
    check(desired.generation == ring.current.generation, "an earlier generation is desired")
    generations = [entry.generation for entry in (*ring.history, ring.current)]
    check(generations == sorted(set(generations)), "generations that go back")
    return "sealed keyring"


def _sweep(payload: bytes) -> str:
    body = _sealed(payload)
    try:
        _, rest = parse_record(body, _KEY, "acme", _MASTER_KEYS)
    except CodedError as exc:
        return code_of(exc, "corrupt_object")
    read = []
    for kind in _KINDS:
        try:
            value = from_json(kind, rest)
        except ValueError:
            continue
        check(from_json(kind, to_json(value)) == value, "comes back changed")
        read.append(kind.__name__)
    return "+".join(read) or "no record of a sweep"


def _check_shows_nothing(error: BaseException) -> None:
    shown = ""
    cause: BaseException | None = error
    while cause is not None:
        shown += f"{cause!r} {cause}"
        cause = cause.__cause__
    check(not any(secret in shown for secret in _SECRETS), "an error shows a key")


def _seeds() -> list[bytes]:
    options, at = SweepOptions(master_key="m2", repair=True), factories.DATE
    digests = ("a" * 64,)
    sweep = Origin("sweep", _SWEEP_ID, "api", factories.AT, digests, at, "ada", options)
    end = End(at, clean=False, counts=Counts(failed=1), round_id=_ID, code="c", failed_at_step=7)
    rotation = Origin("rotation", _ID, "api", factories.AT, digests, at, end=end)
    part = replace(sweep, kind="part", walk_id=_ID)
    state = State(3, "9f86d081884c7d65", "m1", plaintext=False, serial=5)
    page = OpenPage(3, "a", "b", attempts=1, sent_at=at, not_before=at)
    record = ProjectRecord(
        "acme",
        state,
        at,
        lease_s=15,
        stepped_lease_s=15,
        stepped_at=at,
        origins=(rotation, sweep, part),
        round=Round(_ID, options, (sweep.name, part.name), open_pages=(page,), proven_to=at),
        clean_end=CleanEnd("{}", state, (sweep.name,), Counts(rewrapped=1)),
        evidence="{}",
    )
    result = Result("a", "b", state, at, Counts(objects=3), 1, (Failure("k", "c"),))
    walk = Walk(_ID, options, (sweep.name,), open_parts=("acme",), not_found={"b": 1})
    every = AllRecord(origins=(sweep,), round=walk)
    values = (record, every, result, PartEnd(Counts(failed=1), clean=False))
    other = build_record(_KEY, "beta", "m1", _REST, _MASTER_KEYS)
    return [
        b"\x00" + _RAW,
        b"\x00" + other,
        b"\x00" + _RAW.replace(b'"m1"', b'"m2"'),
        b"\x01" + json.dumps(_REST).encode(),
        *(b"\x02" + json.dumps(to_json(value)).encode() for value in values),
        b'\x01{"generation": 1e999, "history": [' + b"[" * 2000,
    ]


HARNESS: Final = Harness(
    "records",
    run,
    _seeds,
    (
        '"generation":',
        '"kek":',
        '"kek_id":',
        '"rotation_id":',
        '"requested_at":',
        '"at":',
        '"plaintext":"allowed"',
        '"history":[',
        '"v":1,',
        '"project":"acme",',
        '"master_key":"m2",',
        '"sealed":"',
        "null",
        "1e999",
        "NaN",
        "true",
        '"\\ud800"',
        '"9999-12-31T23:59:59Z"',
        "Infinity",
    ),
)
