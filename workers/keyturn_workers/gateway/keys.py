"""`GET` of a project's keys, for readers that open its objects by themselves (SPEC 9.8).

The response has no key and no secret, only what the customer's KMS needs to decrypt a customer
secret for a caller that has credentials of its own. It needs no store.
"""

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from keyturn.crypto.customer_keys import associated_data, encryption_context
from keyturn_workers.core.customer_keys import CustomerKey
from keyturn_workers.core.keyring import Generation, Keyring
from keyturn_workers.gateway.auth import Authenticator
from keyturn_workers.gateway.request import parse_project

_VAULT: Final = "vault:"


def keys_document(keyring: Keyring, deployment: str) -> dict[str, Any]:
    """Return the generations that wraps may still be of, the oldest first.

    A clean end clears the others: no wrap needs them.
    """
    entries = (*keyring.history, keyring.current)
    return {
        "dek_floor": 0,
        "generations": [
            _generation(keyring.project, entry, deployment)
            for entry in entries
            if entry.kek is not None or _uncleared(entry) is not None
        ],
    }


def _generation(project: str, entry: Generation, deployment: str) -> dict[str, Any]:
    document: dict[str, Any] = {"generation": entry.generation, "dek_since": 0}
    customer_key = _uncleared(entry)
    if customer_key is not None:
        wrapped = customer_key.wrapped or ""
        context = associated_data if wrapped.startswith(_VAULT) else encryption_context
        document["customer_key"] = {
            "store": customer_key.name.store,
            "key": customer_key.name.key,
            "secret_id": customer_key.secret_id,
            "wrapped": wrapped,
            "context": context(deployment, project, customer_key.secret_id),
        }
    return document


def _uncleared(entry: Generation) -> CustomerKey | None:
    customer_key = entry.customer_key
    return None if customer_key is None or customer_key.is_cleared else customer_key


class KeysRoutes:
    """Describes the keys of the caller's project."""

    def __init__(self, auth: Authenticator, deployment: str) -> None:
        self._auth = auth
        self._deployment = deployment

    async def get(self, request: Request) -> Response:
        """Return the description, by the keyring that the caller was authenticated with."""
        project = parse_project(request.scope["raw_path"])
        caller = await self._auth.authenticate(project, request.headers.getlist("authorization"))
        document = keys_document(caller.snapshot.keyring, self._deployment)
        return JSONResponse(document, headers={"cache-control": "no-store"})
