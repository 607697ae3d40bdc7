"""Requests built by hand from the specified formats, so that a test can break any part."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from keyturn.crypto import (
    Secret,
    kek_info,
    seal,
    session_info,
    to_base64,
    transport_context,
    upload_info,
    user_kek,
)
from keyturn.identifiers import format_time

if TYPE_CHECKING:
    from keyturn.crypto import SigningKey
    from keyturn.publisher.sessions import SealingSession
    from tools.harness.deployment import Deployment


def new_id() -> str:
    return str(uuid.uuid4())


def now() -> str:
    return format_time(datetime.now(UTC))


@dataclass
class Upload:
    """An unsigned upload request; every field can be changed before it is signed."""

    document: dict[str, Any]
    sealed_body: bytes
    upload_id: str = field(default="")
    transport_key: bytes = field(default=b"", repr=False)


def upload(
    deployment: Deployment,
    project: str,
    key: str,
    plaintext: bytes,
    *,
    staged: bool = False,
    upload_id: str | None = None,
    session: SealingSession | None = None,
) -> Upload:
    """A valid upload request; the body to stage is in `sealed_body`.

    Its key is sealed under the `session`, or without one in the one-shot form.
    """
    upload_id, transport_key = upload_id or new_id(), os.urandom(32)
    sealed = seal(transport_key, transport_context(upload_id), plaintext)
    info = upload_info(upload_id, project, key)
    if session is None:
        one_shot = deployment.intake.public_key.seal(transport_key, info)
        sealed_key = {"intake_key": "main", "ciphertext": to_base64(one_shot)}
    else:
        sealed_key = session.seal(Secret(transport_key), info).model_dump(mode="json")
    body = {"staged": {"size": len(sealed)}} if staged else {"inline": to_base64(sealed)}
    document = {
        "type": "upload.requested",
        "upload_id": upload_id,
        "project": project,
        "key": key,
        "requested_at": now(),
        "sealed_key": sealed_key,
        "body": body,
    }
    return Upload(document, sealed, upload_id, transport_key)


def put_under_a_session(deployment: Deployment, made: Upload, publisher: str = "api") -> bytes:
    """Seal the upload's key under a new session of this publisher; returns the session's secret."""
    secret, document = os.urandom(32), made.document
    session = deployment.intake.public_key.seal(secret, session_info(deployment.name, publisher))
    info = upload_info(made.upload_id, document["project"], document["key"])
    document["sealed_key"] = {
        "intake_key": "main",
        "session": to_base64(session),
        "ciphertext": to_base64(seal(secret, info, made.transport_key)),
    }
    return secret


def enroll(deployment: Deployment, project: str, **more: Any) -> dict[str, Any]:
    """A valid enrollment of the deployment's API key."""
    request_id = new_id()
    kek = user_kek(deployment.api_key, project)
    ciphertext = deployment.intake.public_key.seal(
        kek.reveal(), kek_info("enroll", request_id, project)
    )
    return {
        "type": "enroll.requested",
        "request_id": request_id,
        "project": project,
        "requested_at": now(),
        "sealed_kek": {"intake_key": "main", "ciphertext": to_base64(ciphertext)},
        **more,
    }


def rotation(
    deployment: Deployment, project: str, api_key: str | None, **more: Any
) -> dict[str, Any]:
    """A valid rotation to this API key, or to the `customer_key` among `more`."""
    rotation_id = new_id()
    document = {
        "type": "rotation.requested",
        "rotation_id": rotation_id,
        "project": project,
        "requested_at": now(),
    }
    if api_key is None:
        return {**document, **more}
    ciphertext = deployment.intake.public_key.seal(
        user_kek(api_key, project).reveal(), kek_info("rotation", rotation_id, project)
    )
    sealed_kek = {"intake_key": "main", "ciphertext": to_base64(ciphertext)}
    return {**document, "sealed_kek": sealed_kek, **more}


def sweep(project: str, **more: Any) -> dict[str, Any]:
    """A valid sweep of one project, or of all (`*`)."""
    return {
        "type": "sweep.requested",
        "sweep_id": new_id(),
        "project": project,
        "requested_at": now(),
        **more,
    }


def delete(project: str, key: str, **more: Any) -> dict[str, Any]:
    """A valid delete request."""
    return {
        "type": "delete.requested",
        "request_id": new_id(),
        "project": project,
        "key": key,
        "requested_at": now(),
        **more,
    }


def encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def headers(
    body: bytes, key: SigningKey, *, publisher: str = "api", deployment: str = "test"
) -> dict[str, str]:
    """The two headers of a signed request."""
    return {
        "keyturn-publisher": publisher,
        "keyturn-signature": key.sign_request(deployment, publisher, body),
    }
