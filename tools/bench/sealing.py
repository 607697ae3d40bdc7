"""Sealing and opening on one core against OpenSSL's AES-256-GCM and Tink's streaming AEAD (SPEC 3).

OpenSSL's side is `AESGCM.encrypt_into` over messages of 1 MiB through one buffer: no
format, no copies, the maximum of the library from Python. `openssl speed` is shown next to it if
available. All sides alternate in one thread.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, Opener, Sealer, open_sealed, seal
from tools.bench.figures import Row, Spread, higher_is_better

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MIB = 2**20
_KEY = bytes(range(32))
_NONCE = bytes(12)
_SPEED_S = 1
_CIPHER = ("-evp", "aes-256-gcm")
_SPEED_TIMEOUT_S = 30


def _sealed_in_pieces(view: memoryview) -> int:
    sealer = Sealer(_KEY, BODY_CONTEXT)
    done = len(sealer.header)
    for at in range(0, len(view), _MIB):
        done += len(sealer.update(view[at : at + _MIB]))
    return done + len(sealer.finish())


def _opened_in_pieces(sealed: memoryview) -> int:
    opener = Opener(_KEY, BODY_CONTEXT, bytes(sealed[:HEADER_BYTES]))
    done = 0
    for at in range(HEADER_BYTES, len(sealed), _MIB):
        done += len(opener.update(sealed[at : at + _MIB]))
    return done + len(opener.finish())


def _openssl_sealing(view: memoryview) -> int:
    aead, out = AESGCM(_KEY), bytearray(_MIB + 16)
    for at in range(0, len(view), _MIB):
        aead.encrypt_into(_NONCE, view[at : at + _MIB], None, out)
    return len(view)


def _openssl_opening(sealed: Sequence[bytes]) -> int:
    aead, out = AESGCM(_KEY), bytearray(_MIB)
    for message in sealed:
        aead.decrypt_into(_NONCE, message, None, out)
    return len(sealed)


def _tink() -> Any:
    """Tink's streaming AEAD with segments of 1 MiB, or None where it is not installed."""
    # By name: it has no types, and is only in the dependency group `bench`.
    try:
        tink = import_module("tink")
        streaming_aead = import_module("tink.streaming_aead")
    except ImportError:
        return None
    streaming_aead.register()
    templates = streaming_aead.streaming_aead_key_templates
    handle = tink.new_keyset_handle(templates.AES256_GCM_HKDF_1MB)
    return handle.primitive(streaming_aead.StreamingAead)


class _KeptOpen(io.BytesIO):
    """Tink closes its output stream, but the bytes are still needed."""

    def close(self) -> None:
        """Keep it."""


def _tink_sealed(primitive: Any, view: memoryview) -> bytes:
    out = _KeptOpen()
    with primitive.new_encrypting_stream(out, b"") as stream:
        for at in range(0, len(view), _MIB):
            stream.write(view[at : at + _MIB].tobytes())
    return out.getvalue()


def _tink_opened(primitive: Any, sealed: bytes) -> int:
    done = 0
    with primitive.new_decrypting_stream(io.BytesIO(sealed), b"") as stream:
        while piece := stream.read(_MIB):
            done += len(piece)
    return done


def openssl_speed(text: str) -> float | None:
    """GB/s out of `openssl speed`'s last line, which counts thousands of bytes a second."""
    found = re.search(r"^AES-256-GCM\s+([0-9.]+)k\s*$", text, re.MULTILINE)
    return float(found[1]) * 1000 / 1e9 if found else None


def _speed(*more: str) -> float | None:
    program = shutil.which("openssl")
    if program is None:
        return None
    done = subprocess.run(
        [program, "speed", "-seconds", str(_SPEED_S), "-bytes", str(_MIB), *more, *_CIPHER],
        capture_output=True,
        text=True,
        timeout=_SPEED_TIMEOUT_S,
        check=False,
    )
    return openssl_speed(done.stdout) if done.returncode == 0 else None


def _gb_per_s(what: Callable[[], object], size_bytes: int) -> float:
    # CPU time of this thread, as `openssl speed` counts it: what else runs does not matter.
    began = time.thread_time()
    what()
    return size_bytes / (time.thread_time() - began) / 1e9


def measure(size_bytes: int, rounds: int) -> tuple[list[Row], list[str]]:
    """The rows, and what could not be compared."""
    plain = memoryview(os.urandom(_MIB) * (size_bytes // _MIB))
    sealed = memoryview(seal(_KEY, BODY_CONTEXT, plain))
    aead = AESGCM(_KEY)
    messages = [
        aead.encrypt(_NONCE, plain[at : at + _MIB], None) for at in range(0, size_bytes, _MIB)
    ]
    tink = _tink()
    tinked = _tink_sealed(tink, plain) if tink else b""
    sides: dict[str, Callable[[], object]] = {
        "seal, streamed": lambda: _sealed_in_pieces(plain),
        "seal, whole": lambda: seal(_KEY, BODY_CONTEXT, plain),
        "seal, openssl": lambda: _openssl_sealing(plain),
        "open, streamed": lambda: _opened_in_pieces(sealed),
        "open, whole": lambda: open_sealed(_KEY, BODY_CONTEXT, sealed),
        "open, openssl": lambda: _openssl_opening(messages),
    }
    if tink:
        sides["seal, tink"] = lambda: _tink_sealed(tink, plain)
        sides["open, tink"] = lambda: _tink_opened(tink, tinked)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(_gb_per_s(side, size_bytes))
        for name, more in (("seal, speed", ()), ("open, speed", ("-decrypt",))):
            if (speed := _speed(*more)) is not None:
                found.setdefault(name, []).append(speed)
    notes = [] if tink else ["Tink is not installed, so there is no comparison with it"]
    if "seal, speed" not in found:
        notes.append("there is no openssl command, so there is no comparison with its own speed")
    return _rows(found, size_bytes), notes


_AGAINST = (
    ("openssl", "AES-256-GCM by cryptography, 1 MiB"),
    ("speed", "openssl speed, 1 MiB"),
    ("tink", "Tink streaming AEAD, 1 MiB segments"),
)


def _rows(found: dict[str, list[float]], size_bytes: int) -> list[Row]:
    size = f"{size_bytes // _MIB} MiB"
    return [
        Row(
            f"{what} {size}, {form}",
            "-",
            "GB/s",
            Spread(tuple(found[f"{what}, {form}"])),
            Spread(tuple(found[f"{what}, {side}"])),
            against,
            higher_is_better(found[f"{what}, {form}"], found[f"{what}, {side}"]),
        )
        for what in ("seal", "open")
        for form in ("streamed", "whole")
        for side, against in _AGAINST
        if len(found.get(f"{what}, {side}", ())) == len(found[f"{what}, {form}"])
    ]
