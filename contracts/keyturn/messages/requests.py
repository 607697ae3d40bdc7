"""Requests, as publishers send them and workers check them (SPEC 6.3 to 6.6, 15.3). Pure."""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import Field

from keyturn.identifiers import parse_time
from keyturn.messages.fields import (
    Actor,
    Base64,
    CallerMetadata,
    ContentType,
    Generation,
    Key,
    Project,
    RequestId,
    ShortName,
    StrictModel,
    Time,
)

INLINE_MAX_BYTES: Final = 256 * 1024
"""Plaintext bytes above which a body is staged in the bucket."""
_STAGED_MAX_BYTES: Final = 2**53 - 1  # what every JSON implementation can count to


class SealedSecret(StrictModel):
    """A secret sealed to an intake key: HPKE's `enc ‖ ciphertext` (SPEC 3.2)."""

    intake_key: ShortName
    ciphertext: Base64


class InlineBody(StrictModel):
    """A body of at most 256 KiB of plaintext, sealed with the transport key."""

    inline: Base64


class Staged(StrictModel):
    """The size in bytes of the sealed body in staging."""

    size: Annotated[int, Field(ge=1, le=_STAGED_MAX_BYTES)]


class StagedBody(StrictModel):
    """A body stored at `.keyturn/staging/{publisher}/{upload_id}` beforehand."""

    staged: Staged


class RequestModel(StrictModel):
    """What all requests have in common."""

    requested_at: Time

    @property
    def requested_at_instant(self) -> datetime:
        """`requested_at` as an instant in UTC."""
        return parse_time(self.requested_at)


class ControlRequestModel(RequestModel):
    """What requests to the control workers have in common.

    `actor` is the person for whom the publisher asks, by the publisher's word (SPEC 15.3).
    """

    actor: Actor | None = None


class UploadRequested(RequestModel):
    """Encrypt this body and store it (SPEC 6.4)."""

    type: Literal["upload.requested"] = "upload.requested"
    upload_id: RequestId
    project: Project
    key: Key
    content_type: ContentType | None = None
    metadata: CallerMetadata | None = None
    sealed_key: SealedSecret
    body: InlineBody | StagedBody


class EnrollRequested(ControlRequestModel):
    """Give a project its keyring (SPEC 6.5)."""

    type: Literal["enroll.requested"] = "enroll.requested"
    request_id: RequestId
    project: Project
    sealed_kek: SealedSecret
    plaintext: Literal["allowed"] | None = None
    v0: Literal["allowed"] | None = None
    sealed_v0_kek: SealedSecret | None = None
    adopt: bool = False


class RotationRequested(ControlRequestModel):
    """Replace a project's user KEK (SPEC 6.5)."""

    type: Literal["rotation.requested"] = "rotation.requested"
    rotation_id: RequestId
    project: Project
    expected_generation: Generation | None = None
    sealed_kek: SealedSecret


class SweepRequested(ControlRequestModel):
    """Bring the objects of one project, or of all, to the desired state (SPEC 6.6)."""

    type: Literal["sweep.requested"] = "sweep.requested"
    sweep_id: RequestId
    project: Project | Literal["*"]
    master_key: ShortName | None = None
    encrypt_plaintext: bool = False
    repair: bool = False
    dry_run: bool = False


class DeleteRequested(ControlRequestModel):
    """Replace an object by a tombstone (SPEC 6.6, 8.7)."""

    type: Literal["delete.requested"] = "delete.requested"
    request_id: RequestId
    project: Project
    key: Key


Request = UploadRequested | EnrollRequested | RotationRequested | SweepRequested | DeleteRequested
REQUEST_MODELS: Final[dict[str, type[RequestModel]]] = {
    "upload.requested": UploadRequested,
    "enroll.requested": EnrollRequested,
    "rotation.requested": RotationRequested,
    "sweep.requested": SweepRequested,
    "delete.requested": DeleteRequested,
}
