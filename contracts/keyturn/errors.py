"""Every exception of the package `keyturn`, in one tree (SPEC 12).

    KeyturnError
     ├── CodedError                         has a code of SPEC 12: over AMQP, HTTP and in the CLI
     │    ├── PermanentError                a retry ends the same way; dead-lettered at once
     │    │    ├── MalformedRequestError    malformed_request
     │    │    ├── BadSignatureError        bad_signature
     │    │    ├── NotPermittedError        not_permitted
     │    │    ├── RequestExpiredError      request_expired
     │    │    ├── UnknownProjectError      unknown_project
     │    │    ├── ProjectErasedError       project_erased
     │    │    ├── AlreadyEnrolledError     already_enrolled
     │    │    ├── UnknownIntakeKeyError    unknown_intake_key
     │    │    ├── BadSealError             bad_seal
     │    │    ├── BodyTooLargeError        body_too_large
     │    │    ├── StagedBodyMissingError   staged_body_missing
     │    │    ├── UnknownSourceError       unknown_source
     │    │    ├── SourceMissingError       source_missing
     │    │    ├── SourceChangedError       source_changed
     │    │    ├── AlreadyExistsError       already_exists
     │    │    ├── DeletedKeyError          deleted_key
     │    │    ├── GenerationMismatchError  generation_mismatch
     │    │    ├── KekReusedError           kek_reused
     │    │    ├── UnknownAlgorithmError    unknown_algorithm
     │    │    ├── NoUsableWrapError        no_usable_wrap
     │    │    ├── WrapsDisagreeError       wraps_disagree
     │    │    ├── CorruptObjectError       corrupt_object
     │    │    ├── ForeignObjectError       foreign_object
     │    │    ├── HiddenWrapError          hidden_wrap
     │    │    ├── LockedObjectError        locked_object
     │    │    ├── ArchivedObjectError      archived_object
     │    │    ├── UnauthorizedError        unauthorized
     │    │    ├── NotFoundError            not_found
     │    │    ├── RangeNotSatisfiableError range_not_satisfiable
     │    │    └── UnsupportedMediaTypeError unsupported_media_type
     │    └── TransientError                retried after 1, 5, 30, 120, 600, 600 … seconds
     │         ├── KeyringRolledBackError   keyring_rolled_back
     │         ├── UnknownMasterKeyError    unknown_master_key
     │         ├── StorageUnavailableError  storage_unavailable
     │         ├── SourceUnavailableError   source_unavailable
     │         ├── KmsUnavailableError      kms_unavailable
     │         ├── CustomerKeyRefusedError  customer_key_refused
     │         ├── CustomerKeyUnavailableError customer_key_unavailable
     │         ├── MarksUnavailableError    marks_unavailable
     │         ├── LeaseMismatchError       lease_mismatch
     │         └── TooManyRequestsError     too_many_requests; a worker refuses at once
     ├── PublisherError                     publishing a request, or waiting for its events
     │    ├── NotDeliveredError             the request is on no queue
     │    │    └── BrokerUnavailableError   nothing was sent
     │    │         └── BrokerTlsError      TLS failed (also a ConnectionError)
     │    ├── OutcomeUnknownError           sent, but the broker did not confirm it
     │    ├── EventsUnavailableError        the stream of events cannot be read
     │    ├── NotSentHereError              the request came from another process
     │    └── WaitTimeoutError              no event in time (also a TimeoutError)
     ├── GatewayError                       talking to the HTTP gateway
     │    ├── GatewayUnavailableError       no connection, or no response to a read
     │    ├── ResponseLostError             an upload, a delete or a rotation got no response
     │    ├── UploadPendingError            an upload was accepted, and its outcome is not known yet
     │    ├── UnexpectedResponseError       a response that SPEC 9 does not define
     │    ├── LinkExpiredError              the storage refuses a ciphertext link
     │    └── IncompleteBodyError           the body ended before its length
     ├── SealError                          sealed bytes do not open
     │    ├── CommitmentError               the header does not match the key and context
     │    ├── ChunkError                    a chunk is not authentic, or the stream is cut
     │    └── SignatureError                the signature does not verify
     ├── EvidenceError                      evidence does not verify (SPEC 15)
     │    ├── MalformedEvidenceError        not evidence, or it contradicts itself or its chain
     │    ├── ForgedEvidenceError           the signature does not verify
     │    ├── UnknownEventKeyError          signed by a key that is not given
     │    ├── RetiredEventKeyError          signed by a key that was retired before
     │    ├── ForeignEvidenceError          of another deployment or project
     │    ├── ReplayedEvidenceError         twice the same, or two after the same one
     │    ├── ReorderedEvidenceError        a complete chain in another order
     │    └── CutEvidenceError              a link is missing
     └── SettingsError                      a setting, or an optional dependency, is missing

    UnencryptedGatewayWarning (a UserWarning): an API key is sent over plain HTTP

`detail`, the text of a `CodedError`, is sent to the requester and written to logs. No
exception of this module may hold a secret, a plaintext or a sealed body. Exceptions of the
gateway's client have no cause: an exception of aiohttp can hold the request with its headers.
"""

from typing import ClassVar, Self


class KeyturnError(Exception):
    """Base class of all exceptions of this package."""


class CodedError(KeyturnError):
    """A rejection or failure that has a code of SPEC 12.

    Args:
        detail: One line for people, without secrets. May be empty.

    Attributes:
        code: The stable code, such as `already_exists`.
        detail: As given.
        transient: True if the same request may succeed later.
    """

    code: ClassVar[str]
    transient: ClassVar[bool] = False

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}" if self.detail else self.code


class PermanentError(CodedError):
    """A retry of the same request ends the same way."""


class TransientError(CodedError):
    """A retry may succeed."""

    transient: ClassVar[bool] = True


class MalformedRequestError(PermanentError):
    """Not JSON, does not match the schema of SPEC 6, or holds a name that SPEC 1 forbids."""

    code = "malformed_request"


class BadSignatureError(PermanentError):
    """The signature is not a known publisher's, or is for another deployment."""

    code = "bad_signature"


class NotPermittedError(PermanentError):
    """The publisher may not send this type of request, or the gateway forbids it."""

    code = "not_permitted"


class RequestExpiredError(PermanentError):
    """`requested_at` is too old, or lies in the future."""

    code = "request_expired"


class UnknownProjectError(PermanentError):
    """The project has no keyring. Still retried after 1, 5 and 9 seconds (SPEC 7.5)."""

    code = "unknown_project"

    @classmethod
    def of(cls, project: str) -> Self:
        """Return the error about this project, with its remedy."""
        return cls(f"{project} is not enrolled; to enroll it: keyturn enroll {project}")


class ProjectErasedError(PermanentError):
    """The project was erased: nothing of it opens, and its name is taken for ever (SPEC 8.8)."""

    code = "project_erased"

    @classmethod
    def of(cls, project: str) -> Self:
        """Return the error about this project."""
        return cls(f"{project} was erased: its name is not used again")


class AlreadyEnrolledError(PermanentError):
    """The project already has a keyring, or objects."""

    code = "already_enrolled"


class UnknownIntakeKeyError(PermanentError):
    """Sealed to an intake key that this worker does not hold."""

    code = "unknown_intake_key"


class BadSealError(PermanentError):
    """A sealed part of the request does not open, or opens to the wrong length."""

    code = "bad_seal"


class BodyTooLargeError(PermanentError):
    """The body exceeds the limit for inline bodies, or for objects."""

    code = "body_too_large"


class StagedBodyMissingError(PermanentError):
    """The staged body does not exist, or does not have the size that the request states."""

    code = "staged_body_missing"


class UnknownSourceError(PermanentError):
    """The worker has no source of this name (SPEC 17)."""

    code = "unknown_source"


class SourceMissingError(PermanentError):
    """The source has no such object, or no such version of it."""

    code = "source_missing"


class SourceChangedError(PermanentError):
    """The ETag or size of the source's object differs from the request's."""

    code = "source_changed"


class AlreadyExistsError(PermanentError):
    """The object key holds another upload's object; objects are written once."""

    code = "already_exists"


class DeletedKeyError(PermanentError):
    """The object key holds a tombstone; it never accepts another body."""

    code = "deleted_key"


class GenerationMismatchError(PermanentError):
    """The request is older than the last rotation, or expects another generation."""

    code = "generation_mismatch"


class KekReusedError(PermanentError):
    """The KEK is the current one, or an earlier one of the project."""

    code = "kek_reused"


class KeyringRolledBackError(TransientError):
    """A keyring is older than its mark, or than an object that it wraps (SPEC 5.4, 5.5)."""

    code = "keyring_rolled_back"


class UnknownAlgorithmError(PermanentError):
    """`enc-algo` is not an algorithm of SPEC 4."""

    code = "unknown_algorithm"


class UnknownMasterKeyError(TransientError):
    """A record names a master key that this process does not hold."""

    code = "unknown_master_key"


class NoUsableWrapError(PermanentError):
    """Neither wrap opens with any available key."""

    code = "no_usable_wrap"


class WrapsDisagreeError(PermanentError):
    """The user wrap does not hold the admin wrap's DEK under the KEK of its generation (SPEC 8.2).

    Someone changed the object, or an old keyring was restored and rotated. Only a sweep with
    `repair` changes it.
    """

    code = "wraps_disagree"


class CorruptObjectError(PermanentError):
    """Header, wraps, chunks or metadata of an object contradict each other or are missing."""

    code = "corrupt_object"


class ForeignObjectError(PermanentError):
    """An S3 key that SPEC 1 forbids, with an envelope that some key may open (SPEC 8.6)."""

    code = "foreign_object"


class HiddenWrapError(PermanentError):
    """A value that a rewrap keeps holds a wrap that a retired key opens (SPEC 8.2)."""

    code = "hidden_wrap"


class LockedObjectError(PermanentError):
    """An object lock forbids the change."""

    code = "locked_object"


class ArchivedObjectError(PermanentError):
    """The object must be restored from its storage class before it can be read."""

    code = "archived_object"


class StorageUnavailableError(TransientError):
    """The storage did not respond, or responded with an error of its own."""

    code = "storage_unavailable"


class SourceUnavailableError(TransientError):
    """A source did not respond, responded with an error of its own, or refused the credentials."""

    code = "source_unavailable"


class KmsUnavailableError(TransientError):
    """The provider of a master key did not respond, refused, or contradicted itself (SPEC 2.2)."""

    code = "kms_unavailable"


class CustomerKeyRefusedError(TransientError):
    """The customer's key answers, and opens nothing: denied, disabled or gone (SPEC 2.6)."""

    code = "customer_key_refused"


class CustomerKeyUnavailableError(TransientError):
    """The customer's key does not answer: cut off, throttled or failing (SPEC 2.6)."""

    code = "customer_key_unavailable"


class MarksUnavailableError(TransientError):
    """This worker does not know the newest marks of keyrings, or cannot add one (SPEC 5.5)."""

    code = "marks_unavailable"


class LeaseMismatchError(TransientError):
    """This worker's `LEASE_S` is shorter than the one in the sweep's record (SPEC 8.4)."""

    code = "lease_mismatch"


class TooManyRequestsError(TransientError):
    """The project uses its share (SPEC 9.3), or the publisher has too many sweeps open (SPEC 8.5).

    The caller decides when to try again: a worker does not keep such a request.
    """

    code = "too_many_requests"


class UnauthorizedError(PermanentError):
    """Not the project's current API key, or no such project."""

    code = "unauthorized"


class NotFoundError(PermanentError):
    """No object exists at that key, or it was deleted."""

    code = "not_found"


class RangeNotSatisfiableError(PermanentError):
    """The range lies outside the object."""

    code = "range_not_satisfiable"


class UnsupportedMediaTypeError(PermanentError):
    """An upload link allows another content type."""

    code = "unsupported_media_type"


class PublisherError(KeyturnError):
    """Publishing a request, or waiting for its events, failed."""


class NotDeliveredError(PublisherError):
    """The request is on no queue. A body that was staged for it has been deleted.

    Publish it again, with the same id or a new one, once the cause is fixed.
    """


class BrokerUnavailableError(NotDeliveredError):
    """The broker could not be reached in time; nothing was sent."""


class BrokerTlsError(BrokerUnavailableError, ConnectionError):
    """TLS with the broker failed: the text names the reason and the setting.

    A retry will not help until a person changes a certificate or a setting.
    """


class OutcomeUnknownError(PublisherError):
    """The request was sent, but the broker did not confirm it: it may be on its queue.

    Publish it again **with the same id**: a request that arrives twice takes effect once.
    """


class EventsUnavailableError(PublisherError):
    """The stream of events does not exist yet, or this user may not read it."""


class NotSentHereError(PublisherError):
    """This publisher did not send the request, or no longer remembers it.

    Pass the request's `project` and `request_type`. An id alone does not identify a request:
    any publisher may use any id.
    """


class WaitTimeoutError(PublisherError, TimeoutError):
    """No event of the request arrived in time. The text names possible causes.

    Nothing was lost: if the workers accept the publisher, wait again.
    """


class UnencryptedGatewayWarning(UserWarning):
    """The API key is sent to another machine over plain HTTP: the network can read it."""


class GatewayError(KeyturnError):
    """Talking to the HTTP gateway failed, other than by a rejection with a code."""


class GatewayUnavailableError(GatewayError):
    """The gateway could not be reached, or did not respond to a read. Safe to repeat."""


class ResponseLostError(GatewayError):
    """An upload, a delete or a rotation was sent, at least in part, and got no response.

    It may have taken effect, or may still do so. After an upload, check with `stat`: a repeated
    upload is rejected with `already_exists` if the first one was stored. A delete can be repeated.
    After a rotation, try the new API key.
    """


class UploadPendingError(GatewayError):
    """The gateway accepted an upload, and its outcome was not known when the wait ended.

    The object may still be stored, or rejected. Check with `stat`: a repeated upload is rejected
    with `already_exists` if the first one was stored.

    Args:
        upload_id: The id of the upload, which its event names, too.
    """

    def __init__(self, upload_id: str) -> None:
        super().__init__(
            f"upload {upload_id} was accepted, but its outcome is not known yet: the object may "
            "still be stored, or refused"
        )
        self.upload_id = upload_id


class UnexpectedResponseError(GatewayError):
    """The response is not the gateway's (but e.g. a proxy's), or does not fit the request.

    With a `status` of 500 or more, an upload, a delete or a rotation may have taken effect: a proxy
    responds so when it loses the gateway's response.

    Args:
        reason: The problem of the response; never a part of its body.
        status: Its HTTP status.
    """

    def __init__(self, reason: str, *, status: int) -> None:
        super().__init__(reason)
        self.status = status


class LinkExpiredError(GatewayError):
    """The storage refuses a ciphertext link: it has expired, or was changed.

    Ask the gateway for a new one.
    """


class IncompleteBodyError(GatewayError):
    """The connection ended, or stalled, before the whole body was received.

    The gateway cuts a body when a chunk is not authentic or the storage fails. The bytes
    received so far are authentic, but they are not the whole object or range: do not keep
    them under the object's name.
    """


class SealError(KeyturnError):
    """Sealed bytes do not open with this key and context.

    It has no code of SPEC 12, since the code depends on the opened bytes (`bad_seal` for a request,
    `corrupt_object` for an object): the caller translates it. It carries no key, no plaintext, no
    sealed byte, and no reason more precise than its class: a caller who could tell failures apart
    could use the reader as an oracle.
    """

    def __init__(self, detail: str = "does not open") -> None:
        super().__init__(detail)


class CommitmentError(SealError):
    """The header does not commit to this key and context, or is not a header (SPEC 3.1)."""

    def __init__(self) -> None:
        super().__init__("the key does not match the header")


class ChunkError(SealError):
    """A chunk is not authentic, or the stream is cut or too long (SPEC 3)."""

    def __init__(self) -> None:
        super().__init__("a chunk is not authentic, or the stream is cut or too long")


class SignatureError(SealError):
    """The signature over these bytes is not by this key for this deployment (SPEC 6.3, 6.7)."""

    def __init__(self) -> None:
        super().__init__("the signature does not verify")


class EvidenceError(KeyturnError):
    """A file of evidence, or a chain of them, does not verify (SPEC 15).

    Args:
        reason: One line for people, without any content of the file.
        index: The file's position in the chain, from 0; None if the error is not about one file.

    Attributes:
        kind: The stable name of this kind of error, such as `forged`.
        index: As given.
    """

    kind: ClassVar[str] = "evidence"

    def __init__(self, reason: str, *, index: int | None = None) -> None:
        super().__init__(reason)
        self.index = index


class MalformedEvidenceError(EvidenceError):
    """Not a file of evidence, or it contradicts itself, or those before it in the chain."""

    kind = "malformed"


class ForgedEvidenceError(EvidenceError):
    """The signature is not by the key that the file names."""

    kind = "forged"


class UnknownEventKeyError(EvidenceError):
    """Signed by an event key whose public half was not given."""

    kind = "unknown_key"


class RetiredEventKeyError(EvidenceError):
    """Signed by an event key that the chain retired before, or the chain ends with another key.

    Without the newest digest, the last file must be signed by the current event key.
    """

    kind = "retired_key"


class ForeignEvidenceError(EvidenceError):
    """Of another deployment or another project."""

    kind = "foreign"


class ReplayedEvidenceError(EvidenceError):
    """The same file twice, or two files that follow the same one: a chain never forks."""

    kind = "replayed"


class ReorderedEvidenceError(EvidenceError):
    """The files are a complete chain, but not in its order."""

    kind = "reordered"


class CutEvidenceError(EvidenceError):
    """A link of the chain is missing: at its start, inside it, or at its end."""

    kind = "cut"


class SettingsError(KeyturnError):
    """A setting is missing or malformed, or an optional dependency is not installed.

    The text is one line and names the setting or the extra to install.
    """


def _leaves(cls: type[CodedError]) -> list[type[CodedError]]:
    # Only classes of this module: a subclass elsewhere does not make its parent an inner node.
    subclasses = [sub for sub in cls.__subclasses__() if sub.__module__ == __name__]
    return [leaf for sub in subclasses for leaf in _leaves(sub)] if subclasses else [cls]


def all_errors() -> dict[str, type[CodedError]]:
    """Return every code of SPEC 12 with its class."""
    return {leaf.code: leaf for leaf in _leaves(CodedError)}
