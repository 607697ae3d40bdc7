"""An object's metadata, as a bucket writer may change it (SPEC 4.3 to 4.6).

The input is lines of `name=value`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from keyturn import metadata
from keyturn.crypto import Secret
from keyturn.errors import CodedError, MalformedRequestError
from keyturn.identifiers import is_short_name
from keyturn.metadata import Wraps
from keyturn_workers.core.wraps import find_key_usage
from tests.fuzz.harness import Harness, check, code_of
from tests.unit.keyturn_workers import factories
from tools.harness.local_keys import admin_keks, desired_state

_KEYS: Final = admin_keks("acme", {"m1": Secret(bytes([1]) * 32)})


def read_lines(data: bytes) -> dict[str, str]:
    """Names and values as a client library gives them: text of one byte a character."""
    lines = (line.partition("=") for line in data.decode("latin-1").split("\n") if line)
    return {name.lower(): value for name, _, value in lines}


def lines(metadata_of: dict[str, str]) -> bytes:
    """The reverse."""
    return "\n".join(f"{name}={value}" for name, value in metadata_of.items()).encode("latin-1")


def run(data: bytes) -> str:
    """Read it by everything that reads metadata alone."""
    stored = read_lines(data)
    _check_callers(stored)
    try:
        envelope = metadata.parse(stored)
    except CodedError as exc:
        return code_of(exc, "corrupt_object", "unknown_algorithm")
    if isinstance(envelope, Wraps) and is_short_name(envelope.master_key):
        again = metadata.parse(metadata.build(envelope, upload_id=None))
        # Names that Keyturn does not know are never written again.
        check(
            again == replace(envelope, unknown_names=()),
            "wraps that do not come back as they were read",
        )
    try:
        find_key_usage(stored, "acme", "k", _KEYS, range(1, 4))
    except CodedError as exc:
        code_of(exc, "no_usable_wrap")
    return type(envelope).__name__


def _check_callers(stored: dict[str, str]) -> None:
    callers = metadata.decode_caller_metadata(stored)
    check(all(not name.startswith("enc-") for name in callers), "an enc- name given to a caller")
    for name, value in callers.items():
        try:
            wire = metadata.encode_caller_metadata({name: value})
        except MalformedRequestError:
            continue
        check(
            metadata.decode_caller_metadata(wire) == {name: value},
            "a value that comes back changed",
        )


def _seeds() -> list[bytes]:
    ring = factories.keyring()
    desired = desired_state(ring, factories.MASTER_KEYS)
    wraps, _ = factories.sealed_object(desired, "k")
    callers = {"author": "kim", "title": "=?utf-8?b?w7xiZXI=?=", "old": "=?iso-8859-1?q?=FC?= b"}
    mine = factories.enc(wraps, "2f6c9a0e-1111-4111-8111-111111111111")
    return [
        lines(mine | callers),
        lines(mine | {"enc-algo": "AES-256-GCM"}),
        lines(factories.deleted(desired, "k")),
        lines({"enc-upload": "2f6c9a0e-1111-4111-8111-111111111111"} | callers),
        b"a==?utf-8?q?" + b"=41" * 300 + b"?=",
    ]


HARNESS: Final = Harness(
    "metadata",
    run,
    _seeds,
    (
        "enc-algo=",
        "enc-dek-user=",
        "enc-dek-admin=",
        "enc-kek-user=",
        "enc-kek-admin=",
        "enc-upload=",
        "enc-x=",
        "Cobblestone-256",
        "AES-256-GCM",
        "deleted",
        "=?utf-8?b?",
        "=?utf-8?q?",
        "=?iso-2022-jp?b?",
        "=?unknown-8bit?q?",
        "=?utf-7?q?",
        "=?idna?b?",
        "?=",
        "1:9f86d081884c7d65",
    ),
)
