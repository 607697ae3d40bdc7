"""The keys and the sealed secrets of the examples (SPEC 2, 3, 6.4, 6.5).

They are public: the author of a publisher in another language can open the examples with them.
They must never be used in a deployment.
"""

from typing import Any, Final

from keyturn.crypto import (
    IntakeKey,
    SigningKey,
    from_base64,
    kek_info,
    seal,
    to_base64,
    transport_context,
    upload_info,
    user_kek,
    v0_user_kek,
)
from keyturn.messages import MARK_MODELS, REQUEST_MODELS

DEPLOYMENT: Final = "default"
PUBLISHER: Final = "billing"
INTAKE_KEY_ID: Final = "main"
PROJECT: Final = "acme"
KEY: Final = "reports/q3.pdf"
UPLOAD_ID: Final = "2f6c9a0e-5d3b-4c1a-9f5e-0b7d1c8a4e21"
ENROLL_ID: Final = "7b1e4f52-9a60-4d0c-8a3f-6f2f0e9c5d10"
ROTATION_ID: Final = "c4d9b7aa-1f0e-4a57-b1d2-93e86a7f4c33"
SWEEP_ID: Final = "e0a4c6b8-7d92-4f31-8c55-2b9d0f6e1a74"
DELETE_ID: Final = "91c3d5e7-2b4f-4a68-9d0e-5f7a3c1b8e96"
STATUS_ID: Final = "5a7e9c1b-3d5f-4802-b4c6-8e0a2f4d6b13"
AUDIT_ID: Final = "d2f4a6c8-1b3d-4e5f-8a9c-0b2d4f6e8a71"
RECOVERY_ID: Final = "b7d9f1a3-5c6e-4f80-9a1b-3c5d7e9fb182"
REQUESTED_AT: Final = "2026-11-24T10:00:00.000000Z"
AT: Final = "2026-11-24T10:00:00.731000Z"
API_KEY: Final = "kt_0examples0examples0examples0examples0example"
NEW_API_KEY: Final = "kt_1examples1examples1examples1examples1example"
V0_API_KEY: Final = "sk-ac-0examples0examples0examples"
PLAINTEXT: Final = b"%PDF-1.7 (not really)\n"

_INTAKE_SEED: Final = bytes(range(32))
_PUBLISHER_SEED: Final = bytes(range(32, 64))
_EVENT_SEED: Final = bytes(range(64, 96))
_TRANSPORT_KEY: Final = bytes(range(96, 128))
_SALT: Final = bytes(range(24))


def new_sealed() -> dict[str, Any]:
    """Seal the examples' secrets; the HPKE ones come out differently each time."""
    intake = IntakeKey.from_seed(_INTAKE_SEED).public_key

    def hpke(secret: bytes, info: bytes) -> str:
        return to_base64(intake.seal(secret, info))

    def kek(api_key: str) -> bytes:
        return user_kek(api_key, PROJECT).reveal()

    return {
        "note": "Keys of the examples. They are public: never use them for anything else.",
        "deployment": DEPLOYMENT,
        "publisher": PUBLISHER,
        "intake_key_id": INTAKE_KEY_ID,
        "intake_seed": to_base64(_INTAKE_SEED),
        "publisher_seed": to_base64(_PUBLISHER_SEED),
        "event_seed": to_base64(_EVENT_SEED),
        "transport_key": to_base64(_TRANSPORT_KEY),
        "api_key": API_KEY,
        "new_api_key": NEW_API_KEY,
        "v0_api_key": V0_API_KEY,
        "plaintext": PLAINTEXT.decode(),
        "upload_sealed_key": hpke(_TRANSPORT_KEY, upload_info(UPLOAD_ID, PROJECT, KEY)),
        "enroll_sealed_kek": hpke(kek(API_KEY), kek_info("enroll", ENROLL_ID, PROJECT)),
        "enroll_sealed_v0_kek": hpke(
            v0_user_kek(V0_API_KEY, "").reveal(), kek_info("v0", ENROLL_ID, PROJECT)
        ),
        "rotation_sealed_kek": hpke(kek(NEW_API_KEY), kek_info("rotation", ROTATION_ID, PROJECT)),
        "inline": to_base64(
            seal(_TRANSPORT_KEY, transport_context(UPLOAD_ID), PLAINTEXT, salt=_SALT)
        ),
    }


def headers(sealed: dict[str, Any], name: str, body: bytes) -> dict[str, str]:
    """The headers of an example as it would be sent; Ed25519 signs the same way each time.

    `name` is the message's type.
    """
    if name not in REQUEST_MODELS:
        key = SigningKey.from_seed(from_base64(sealed["event_seed"]))
        sign = key.sign_mark if name in MARK_MODELS else key.sign_event
        return {"keyturn-signature": sign(DEPLOYMENT, body)}
    key = SigningKey.from_seed(from_base64(sealed["publisher_seed"]))
    return {
        "keyturn-publisher": PUBLISHER,
        "keyturn-signature": key.sign_request(DEPLOYMENT, PUBLISHER, body),
    }
