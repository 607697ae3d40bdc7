"""The meaning of each code, and its remedy, in plain words (SPEC 12). Pure.

The text is that of docs/reference/errors.md; a test compares them.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CodeHelp:
    """The meaning of a code in plain words, and the remedy, which may be empty."""

    meaning: str
    remedy: str


_UNKNOWN: Final = CodeHelp("a code that this version of the console does not know", "")


def code_help(code: str) -> CodeHelp:
    """The help for a code of SPEC 12."""
    return CODES.get(code, _UNKNOWN)


CODES: Final = {
    "already_enrolled": CodeHelp(
        "the project has a keyring, or objects under its prefix",
        "nothing, if the project is already yours; to adopt objects whose keyring is gone, "
        "keyturn enroll --adopt",
    ),
    "already_exists": CodeHelp(
        "this key already holds another upload's object", "use a new object key"
    ),
    "archived_object": CodeHelp(
        "the object's storage class must be restored before it can be read",
        "restore it, then sweep or read again",
    ),
    "bad_seal": CodeHelp(
        "sealed bytes do not open, or open to the wrong length",
        "publish again; check the intake key and the bindings in info",
    ),
    "bad_signature": CodeHelp(
        "unknown publisher or key, wrong deployment, or a request on another queue or "
        "routing key than its type's",
        "check KEYTURN_PUBLISHERS and KEYTURN_DEPLOYMENT. No event is published",
    ),
    "body_too_large": CodeHelp(
        "above the limit for inline bodies or for objects", "stage the body, or split it"
    ),
    "corrupt_object": CodeHelp(
        "the header does not commit to the DEK, the wraps hold different DEKs, a chunk does "
        "not authenticate, or metadata was stripped",
        "restore the object from a backup; find out who writes to the bucket",
    ),
    "customer_key_refused": CodeHelp(
        "the store of the project's customer key answered, and gives no secret or another one: "
        "access denied, the key disabled, scheduled for deletion or missing",
        "ask the customer whether this was intended, and check the key's policy; the project is "
        "stopped until the key is enabled",
    ),
    "customer_key_unavailable": CodeHelp(
        "the store of the project's customer key did not respond, throttled or failed, or is not "
        "in the settings of this process; or the project is being erased",
        "check the store, the way to it, and KEYTURN_CUSTOMER_KEY_STORES of each process; the "
        "project waits",
    ),
    "deleted_key": CodeHelp(
        "the object key was deleted, and can never be used again", "use a new object key"
    ),
    "foreign_object": CodeHelp(
        "an object with wraps has a name that no object can have; found by sweeps",
        "delete it, or move it to a valid name",
    ),
    "generation_mismatch": CodeHelp(
        "a rotation that is older than the last one, or not from the expected generation; a "
        "recovery of a keyring that has changed since it was shown, or needs no recovery; a sweep "
        "whose master key another request has replaced; a rotation to a customer key while the "
        "project allows plaintext; an erasure while a customer key gives its secret, its store "
        "does not say that it is gone, or wraps without it may exist",
        "look at the current generation, then rotate again; for a recovery, run keyturn recover "
        "again; where plaintext is allowed, keyturn sweep --encrypt-plaintext first; for an "
        "erasure, what the detail asks for",
    ),
    "hidden_wrap": CodeHelp(
        "the metadata, a content header or a tag of the object holds a wrap that a retired key "
        "opens, or too many long values to search; found by sweeps and verify",
        "remove that value from the object (the worker's log names it), then sweep again; find "
        "out who writes to the bucket",
    ),
    "kek_reused": CodeHelp("the project has or had this key", "use a fresh key"),
    "keyring_rolled_back": CodeHelp(
        "the keyring was rolled back or removed, or has no mark, or an object's admin wrap "
        "is of a later generation than the keyring",
        "recover the keyring",
    ),
    "kms_unavailable": CodeHelp(
        "the provider of a master key did not respond, refused the request, or contradicted itself",
        "check the provider; affected projects wait until it responds",
    ),
    "lease_mismatch": CodeHelp(
        "this worker's KEYTURN_LEASE_S is shorter than the one in the project's record",
        "use one value everywhere",
    ),
    "locked_object": CodeHelp(
        "an object lock refuses the change",
        "remove the lock, or wait until the lock expires, then sweep again",
    ),
    "malformed_request": CodeHelp(
        "not valid JSON for its schema, or with a name that is not allowed, or that this "
        "bucket's storage cannot hold",
        "fix the request; the detail names the field, or what is wrong with the key",
    ),
    "marks_unavailable": CodeHelp(
        "the worker cannot read the stream keyturn.marks to its end, or lost marks of this project",
        "look at the broker; if its stream was replaced, recover the keyring",
    ),
    "no_usable_wrap": CodeHelp(
        "neither wrap opens under the keys at hand",
        "check the keys; for an earlier API key, keyturn sweep --repair",
    ),
    "not_found": CodeHelp("nothing at this object key, or a tombstone", ""),
    "not_permitted": CodeHelp(
        "the publisher's grant does not cover this type, this project, this source or customer "
        "keys; KEYTURN_CUSTOMER_KEY_STORES lacks the store that a request names, or does not give "
        "the project this key; or the source maps its object to another place; or the gateway "
        "has KEYTURN_GATEWAY_ROTATION=forbidden or KEYTURN_GATEWAY_DELETE=forbidden",
        "add the type, the project, the source or customer_key to the grant in "
        "KEYTURN_PUBLISHERS, or the project and the key to their store; correct the store's name "
        "(the detail has the project's stores); if a gateway forbids it, ask its operator",
    ),
    "project_erased": CodeHelp(
        "the project was erased: nobody gets the customer secrets that its wraps need, and its "
        "name is not used again. A gateway answers 401, as for an unknown project",
        "delete its objects if they are still there; for new objects, enroll another project",
    ),
    "range_not_satisfiable": CodeHelp("the range is outside the object", ""),
    "request_expired": CodeHelp(
        "the request's requested_at is more than 7 days old, or more than 5 minutes ahead",
        "publish again; for an upload also keyturn dead replay --resign; check clocks",
    ),
    "source_changed": CodeHelp(
        "the source's object does not have the ETag or size that the request names",
        "nothing, if ingest workers or keyturn import read the source: they find the current "
        "object",
    ),
    "source_missing": CodeHelp(
        "the source has no such object, or no such version of it",
        "nothing, if it was deleted on purpose",
    ),
    "source_unavailable": CodeHelp(
        "the bucket of a source did not respond, reported an error, or refused the "
        "worker's credentials",
        "wait; look at that storage, and at the source's fields in KEYTURN_SOURCES",
    ),
    "staged_body_missing": CodeHelp(
        "the staged body is missing, or has another size than the request states", "publish again"
    ),
    "storage_unavailable": CodeHelp(
        "the storage did not respond, or reported an error; or a record was written by a later "
        "release",
        "wait; look at the storage; upgrade this process",
    ),
    "too_many_requests": CodeHelp(
        "the project has used up its share of the gateway, or has too many uploads pending. For a "
        "sweep: 16 of the publisher's sweeps of this project are open; for a status report: the "
        "worker is reading other reports",
        "retry after Retry-After, a sweep after another one has ended",
    ),
    "unauthorized": CodeHelp(
        "no well-formed API key (the detail says so); not the project's current API key, or no "
        "such project; or a link that expired, was changed, or was made before a rotation",
        "use the current API key, or make a new link",
    ),
    "unknown_algorithm": CodeHelp(
        "the object's enc-algo has a value that this version does not know",
        "upgrade, or find out who wrote the object",
    ),
    "unknown_intake_key": CodeHelp(
        "sealed to an intake key that the worker does not have",
        "check KEYTURN_INTAKE_KEYS and KEYTURN_INTAKE_PUBLIC_KEY",
    ),
    "unknown_master_key": CodeHelp(
        "a record names a master key that this process does not have",
        "add it to KEYTURN_MASTER_KEYS",
    ),
    "unknown_project": CodeHelp("the project has no keyring", "enroll it: keyturn enroll PROJECT"),
    "unknown_source": CodeHelp(
        "the worker has no source of this name", "give all workers the same KEYTURN_SOURCES"
    ),
    "unsupported_media_type": CodeHelp(
        "the content type that was sent is not the one that the upload link allows",
        "send the link's own content type, or make a new link",
    ),
    "wraps_disagree": CodeHelp(
        "the two wraps come from different keyrings: someone changed the object, or put an old "
        "keyring back and rotated it",
        "check whose keyring it is; only then keyturn sweep --repair",
    ),
}
"""By code."""
