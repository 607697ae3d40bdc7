"""The cryptography of Keyturn: pure, synchronous, without I/O (SPEC 2 to 6).

| module | holds |
| --- | --- |
| `cobblestone` | the one AEAD format: whole messages, streams, single chunks (SPEC 3) |
| `keys` | derivation of KEKs, and `Secret` (SPEC 2, 5.1) |
| `customer_keys` | what binds a customer secret to its place in a KMS (SPEC 2.6) |
| `wraps` | DEK wraps, records, tombstones (SPEC 4, 5.1, 8.7) |
| `intake` | HPKE from publishers to workers (SPEC 2.5, 3.2, 6.4, 6.5) |
| `signatures` | Ed25519 on requests, events, marks and evidence (SPEC 5.5, 6.3, 6.7, 15.1) |
| `links` | tokens of links to one object (SPEC 9.3) |
| `retry_mac` | the MAC on a worker's note about a retry (SPEC 6.3) |
| `labels`, `base64` | helpers of the other modules |

Its exceptions are the `SealError`s of `keyturn.errors`. It must never read a setting, a clock, a
file or the network, and never log. Its only effect is to draw random bytes from the system.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyturn.crypto.base64 import from_base64, to_base64, validate_base64
    from keyturn.crypto.cobblestone import (
        CHUNK_BYTES,
        COMMITMENT_BYTES,
        HEADER_BYTES,
        MAX_CHUNKS,
        SALT_BYTES,
        SEALED_CHUNK_BYTES,
        TAG_BYTES,
        ChunkReader,
        Opener,
        Sealer,
        commits_to,
        open_sealed,
        plaintext_size,
        seal,
        sealed_size,
    )
    from keyturn.crypto.customer_keys import associated_data, encryption_context
    from keyturn.crypto.intake import (
        IntakeKey,
        IntakePublicKey,
        KekPurpose,
        kek_info,
        session_info,
        upload_info,
    )
    from keyturn.crypto.keys import (
        Kek,
        Secret,
        admin_kek,
        admin_kek_info,
        check_api_key,
        composite_kek,
        customer_secret_id,
        expand_message,
        expand_prk,
        kek_id,
        master_prk,
        new_api_key,
        new_customer_secret,
        new_dek,
        record_kek,
        record_kek_info,
        user_kek,
    )
    from keyturn.crypto.links import LinkClaims, UploadLinkClaims, is_link_token, link_token
    from keyturn.crypto.retry_mac import RetryKey, RetryNote
    from keyturn.crypto.signatures import EventVerifier, MarkVerifier, SigningKey, VerifyKey
    from keyturn.crypto.wraps import (
        BODY_CONTEXT,
        UPLOAD_TAG_BYTES,
        WRAP_BYTES,
        Role,
        open_record,
        open_tombstone,
        seal_record,
        seal_tombstone,
        transport_context,
        unwrap_dek,
        upload_tag,
        wrap_dek,
    )
    from keyturn.errors import ChunkError, CommitmentError, SealError, SignatureError
else:
    from keyturn.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        "keyturn.crypto.base64",
        "keyturn.crypto.cobblestone",
        "keyturn.crypto.customer_keys",
        "keyturn.crypto.intake",
        "keyturn.crypto.keys",
        "keyturn.crypto.links",
        "keyturn.crypto.retry_mac",
        "keyturn.crypto.signatures",
        "keyturn.crypto.wraps",
        "keyturn.errors",
    )

__all__ = [
    "BODY_CONTEXT",
    "CHUNK_BYTES",
    "COMMITMENT_BYTES",
    "HEADER_BYTES",
    "MAX_CHUNKS",
    "SALT_BYTES",
    "SEALED_CHUNK_BYTES",
    "TAG_BYTES",
    "UPLOAD_TAG_BYTES",
    "WRAP_BYTES",
    "ChunkError",
    "ChunkReader",
    "CommitmentError",
    "EventVerifier",
    "IntakeKey",
    "IntakePublicKey",
    "Kek",
    "KekPurpose",
    "LinkClaims",
    "MarkVerifier",
    "Opener",
    "RetryKey",
    "RetryNote",
    "Role",
    "SealError",
    "Sealer",
    "Secret",
    "SignatureError",
    "SigningKey",
    "UploadLinkClaims",
    "VerifyKey",
    "admin_kek",
    "admin_kek_info",
    "associated_data",
    "check_api_key",
    "commits_to",
    "composite_kek",
    "customer_secret_id",
    "encryption_context",
    "expand_message",
    "expand_prk",
    "from_base64",
    "is_link_token",
    "kek_id",
    "kek_info",
    "link_token",
    "master_prk",
    "new_api_key",
    "new_customer_secret",
    "new_dek",
    "open_record",
    "open_sealed",
    "open_tombstone",
    "plaintext_size",
    "record_kek",
    "record_kek_info",
    "seal",
    "seal_record",
    "seal_tombstone",
    "sealed_size",
    "session_info",
    "to_base64",
    "transport_context",
    "unwrap_dek",
    "upload_info",
    "upload_tag",
    "user_kek",
    "validate_base64",
    "wrap_dek",
]
