"""The codes of SPEC 12: one error each, the same on the broker, over HTTP and in the CLI.

    KeyturnError
     ├── PermanentError   to the dead-letter queue at once
     └── TransientError   tried again after 1, 5, 30, 120, 600, 600 … seconds

An error's `detail` is told to whoever sent the request and is written to logs: it
must never hold a secret, a plaintext or a sealed body.
"""

from typing import ClassVar


class KeyturnError(Exception):
    """Whatever Keyturn refuses or fails at, with its code (SPEC 12)."""

    code: ClassVar[str]
    transient: ClassVar[bool] = False

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.detail else self.code


class PermanentError(KeyturnError):
    """Trying again would end the same way."""


class TransientError(KeyturnError):
    """Trying again later may succeed."""

    transient: ClassVar[bool] = True


class MalformedRequestError(PermanentError):
    """Not JSON, not the form that SPEC 6 asks for, or a name that SPEC 1 does not allow."""

    code = "malformed_request"


class BadSignatureError(PermanentError):
    """Signed by nobody known, or not for this deployment."""

    code = "bad_signature"


class NotPermittedError(PermanentError):
    """The publisher may not send this type, or not for this project."""

    code = "not_permitted"


class RequestExpiredError(PermanentError):
    """`requested_at` is too old, or lies in the future."""

    code = "request_expired"


class UnknownProjectError(PermanentError):
    """No keyring stands for the project (retried after 1, 5 and 9 seconds, SPEC 7.5)."""

    code = "unknown_project"


class AlreadyEnrolledError(PermanentError):
    """A keyring, or objects, already stand for the project."""

    code = "already_enrolled"


class UnknownIntakeKeyError(PermanentError):
    """Sealed to an intake key that this worker does not hold."""

    code = "unknown_intake_key"


class BadSealError(PermanentError):
    """Does not open, or opens to a wrong length."""

    code = "bad_seal"


class BodyTooLargeError(PermanentError):
    """Above the limit for inline bodies, or for objects."""

    code = "body_too_large"


class StagedBodyMissingError(PermanentError):
    """The staged body is absent, or not of the size told."""

    code = "staged_body_missing"


class AlreadyExistsError(PermanentError):
    """The key holds another upload's object; objects are written once."""

    code = "already_exists"


class DeletedKeyError(PermanentError):
    """The key holds a tombstone; it never takes another body."""

    code = "deleted_key"


class GenerationMismatchError(PermanentError):
    """Older than the last rotation, or not from the generation expected."""

    code = "generation_mismatch"


class KekReusedError(PermanentError):
    """The KEK is the current one or stands in the history."""

    code = "kek_reused"


class KeyringRolledBackError(TransientError):
    """An object's admin wrap opens at a higher generation than the keyring's (SPEC 5.4)."""

    code = "keyring_rolled_back"


class UnknownAlgorithmError(PermanentError):
    """`enc-algo` names something else than SPEC 4 does."""

    code = "unknown_algorithm"


class UnknownMasterKeyError(TransientError):
    """A record names a master key that this process does not hold."""

    code = "unknown_master_key"


class NoUsableWrapError(PermanentError):
    """Neither wrap opens under the keys at hand."""

    code = "no_usable_wrap"


class CorruptObjectError(PermanentError):
    """The header does not commit to the DEK, wraps disagree, a chunk fails, metadata stripped."""

    code = "corrupt_object"


class ForeignObjectError(PermanentError):
    """A name that SPEC 1 forbids, with an envelope that some key may open (SPEC 8.6)."""

    code = "foreign_object"


class LockedObjectError(PermanentError):
    """The object is under a lock that refuses the change."""

    code = "locked_object"


class ArchivedObjectError(PermanentError):
    """The object's storage class must be restored before it can be read."""

    code = "archived_object"


class StorageUnavailableError(TransientError):
    """The storage did not answer, or answered with a failure of its own."""

    code = "storage_unavailable"


class LeaseMismatchError(TransientError):
    """This worker's `LEASE_S` differs from the one that the sweep's record names (SPEC 8.4)."""

    code = "lease_mismatch"


class TooManyRequestsError(PermanentError):
    """The project has its share of what the gateway serves at once (SPEC 9.3)."""

    code = "too_many_requests"


class UnauthorizedError(PermanentError):
    """Not the project's current API key."""

    code = "unauthorized"


class NotFoundError(PermanentError):
    """Nothing stands at that key, or a tombstone does."""

    code = "not_found"


class RangeNotSatisfiableError(PermanentError):
    """The range lies outside the object."""

    code = "range_not_satisfiable"


def _leaves(cls: type[KeyturnError]) -> list[type[KeyturnError]]:
    # Of this module alone: somebody's own kind of an error takes none away.
    subclasses = [sub for sub in cls.__subclasses__() if sub.__module__ == __name__]
    return [leaf for sub in subclasses for leaf in _leaves(sub)] if subclasses else [cls]


def all_errors() -> dict[str, type[KeyturnError]]:
    """Every code of SPEC 12 with its error."""
    return {leaf.code: leaf for leaf in _leaves(KeyturnError)}
