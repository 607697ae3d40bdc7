"""Makes `sealing_v1.json`: known answers for the formats of `docs/spec.md`.

For authors of other readers or publishers, and so that a change of format cannot
slip in. Everything here is a function of fixed inputs, but for the HPKE ciphertexts,
which no one can make twice: they were made once and are carried along.

Run `python -m tests.vectors.make_sealing` to write the file again. It must never take
an input that is a real secret: all keys are counted up or spelled out.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from keyturn.crypto import (
    BODY_CONTEXT,
    IntakeKey,
    Secret,
    SigningKey,
    admin_kek,
    kek_id,
    kek_info,
    record_kek,
    seal,
    to_base64,
    transport_context,
    upload_info,
    user_kek,
)
from keyturn_workers.pipeline.ingest import v0

PATH = Path(__file__).with_name("sealing_v1.json")

API_KEY = "kt_0000000000000000000000000000000000000000000"
PEPPER = "pepper"
PROJECT = "acme"
KEY = "reports/ünïcode q3.pdf"
REQUEST_ID = "00000000-0000-4000-8000-000000000001"
MASTER_KEY = bytes(range(32))
DEK = bytes(range(32, 64))
SALT = bytes(range(64, 88))
SEED = bytes(range(96, 128))
SESSION_SECRET = bytes(range(128, 160))
DEPLOYMENT = "default"
PUBLISHER = "api"
SIZES = (0, 1, 16383, 16384, 16385, 32768, 49159)


def plaintext(size: int) -> bytes:
    """Return `size` bytes that count up modulo 251, which no chunk size divides."""
    return bytes(at % 251 for at in range(size))


def build(carried: dict[str, Any]) -> dict[str, Any]:
    """Return the vectors; `carried` is the file as it is."""
    return {
        "provenance": "made by tests/vectors/make_sealing.py out of keyturn.crypto; "
        "the HPKE ciphertexts once, all else again by every test run",
        "inputs": {
            "api_key": API_KEY,
            "pepper": PEPPER,
            "project": PROJECT,
            "key": KEY,
            "request_id": REQUEST_ID,
            "master_key": MASTER_KEY.hex(),
            "dek": DEK.hex(),
            "salt": SALT.hex(),
            "seed": SEED.hex(),
            "plaintext": "byte number i is i modulo 251",
        },
        "keks": _keks(),
        "bodies": [_body(size) for size in SIZES],
        "sealed": _sealed(),
        "intake": _intake(carried),
        "session": _session(carried),
        "signatures": _signatures(),
    }


def write(vectors: dict[str, Any]) -> str:
    """Return the file's text."""
    return json.dumps(vectors, indent=2, ensure_ascii=False) + "\n"


def _keks() -> dict[str, Any]:
    keks = {
        "user": user_kek(API_KEY, PROJECT, PEPPER),
        "user, no pepper": user_kek(API_KEY, PROJECT),
        "admin": admin_kek(MASTER_KEY, PROJECT),
        "record": record_kek(MASTER_KEY, PROJECT),
        "v0 user": v0.user_kek(API_KEY, PEPPER),
    }
    return {name: {"kek": kek.reveal().hex(), "id": kek_id(kek)} for name, kek in keks.items()}


def _body(size: int) -> dict[str, Any]:
    sealed = seal(DEK, BODY_CONTEXT, plaintext(size), salt=SALT)
    return {
        "plaintext_bytes": size,
        "sealed_bytes": len(sealed),
        "header": sealed[:56].hex(),
        "sealed_sha256": hashlib.sha256(sealed).hexdigest(),
    }


def _sealed() -> dict[str, Any]:
    """Return small messages with their contexts spelled out, apart from the code under test."""
    user, admin = user_kek(API_KEY, PROJECT, PEPPER), admin_kek(MASTER_KEY, PROJECT)
    record_key = f".keyturn/keyrings/{PROJECT}.json"
    place = f"Cobblestone-256\0{PROJECT}\0{KEY}\x003"
    messages: dict[str, tuple[Secret, str, bytes]] = {
        "user wrap, generation 3": (user, f"keyturn/v1/dek\0user\0{place}", DEK),
        "admin wrap, generation 3": (admin, f"keyturn/v1/dek\0admin\0{place}", DEK),
        "record": (
            record_kek(MASTER_KEY, PROJECT),
            f"keyturn/v1/record\0{record_key}",
            b'{"generation":"1"}',
        ),
        "tombstone": (
            admin,
            f"keyturn/v1/tombstone\0{PROJECT}\0{KEY}",
            b"2026-11-24T10:00:00.000000Z",
        ),
        "inline body": (Secret(DEK), f"keyturn/v1/transport\0{REQUEST_ID}", b"hello"),
    }
    return {
        name: {
            "key": kek.reveal().hex(),
            "context": context.encode().hex(),
            "plaintext": message.hex(),
            "sealed": to_base64(seal(kek.reveal(), context.encode(), message, salt=SALT)),
        }
        for name, (kek, context, message) in messages.items()
    }


def _intake(carried: dict[str, Any]) -> dict[str, Any]:
    intake = IntakeKey.from_seed(SEED)
    info = upload_info(REQUEST_ID, PROJECT, KEY)
    old = carried.get("intake", {}).get("ciphertext")
    return {
        "public_key": to_base64(intake.public_bytes),
        "transport_context": transport_context(REQUEST_ID).hex(),
        "upload_info": info.hex(),
        "enroll_info": kek_info("enroll", REQUEST_ID, PROJECT).hex(),
        "rotation_info": kek_info("rotation", REQUEST_ID, PROJECT).hex(),
        "ciphertext": old or to_base64(intake.public_key.seal(DEK, info)),
        "opens_to": DEK.hex(),
    }


def _session(carried: dict[str, Any]) -> dict[str, Any]:
    """Return a transport key under a session; its contexts are spelled out here once more."""
    info = f"keyturn/v1/session\0{DEPLOYMENT}\0{PUBLISHER}".encode()
    upload = f"keyturn/v1/intake\0upload\0{REQUEST_ID}\0{PROJECT}\0{KEY}".encode()
    old = carried.get("session", {}).get("session")
    return {
        "deployment": DEPLOYMENT,
        "publisher": PUBLISHER,
        "info": info.hex(),
        "secret": SESSION_SECRET.hex(),
        "session": old
        or to_base64(IntakeKey.from_seed(SEED).public_key.seal(SESSION_SECRET, info)),
        "upload_info": upload.hex(),
        "ciphertext": to_base64(seal(SESSION_SECRET, upload, DEK, salt=SALT)),
        "opens_to": DEK.hex(),
    }


def _signatures() -> dict[str, Any]:
    key = SigningKey.from_seed(SEED)
    body = b'{"type":"upload.requested"}'
    batch = b'{"type":"upload.stored","events":[{"type":"upload.stored"}]}'
    return {
        "public_key": key.public_bytes.hex(),
        "deployment": DEPLOYMENT,
        "publisher": PUBLISHER,
        "body": body.decode(),
        "request": key.sign_request(DEPLOYMENT, PUBLISHER, body),
        "event": key.sign_event(DEPLOYMENT, body),
        "batch_body": batch.decode(),
        "batch": key.sign_events(DEPLOYMENT, batch),
    }


def main() -> None:
    """Write the file again, keeping the HPKE ciphertexts that it holds."""
    carried = json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else {}
    PATH.write_text(write(build(carried)), encoding="utf-8")


if __name__ == "__main__":
    main()
