"""Sealing sessions of publishers: a transport key sealed under one needs no HPKE (SPEC 3.2, 6.4).

A session's secret opens the transport keys of one publisher's uploads, and nothing else. It must
never be logged or stored.
"""

import hashlib
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

from keyturn.crypto.base64 import from_base64
from keyturn.crypto.intake import IntakeKey, session_info
from keyturn.crypto.keys import Secret
from keyturn.messages.requests import SealedKey
from keyturn_workers.core.sealed_secrets import (
    held_intake_key,
    open_secret,
    open_under_session,
    open_with,
)

SESSIONS_PER_PUBLISHER: Final = 64

_Sessions: TypeAlias = OrderedDict[bytes, Secret]
"""Secrets by SHA-256 of the sealed session, the least recently used first."""


class OpenedSessions:
    """Opens transport keys, and remembers the sessions under which they are sealed.

    Only sessions that opened are remembered, at most `per_publisher` for each intake key and
    publisher: no publisher evicts another's sessions, and all are dropped with their intake key.
    """

    def __init__(
        self,
        deployment: str,
        intake_keys: Mapping[str, IntakeKey],
        *,
        per_publisher: int = SESSIONS_PER_PUBLISHER,
    ) -> None:
        self._deployment = deployment
        self._intake_keys = intake_keys
        self._per_publisher = per_publisher
        self._opened: WeakKeyDictionary[IntakeKey, defaultdict[str, _Sessions]] = (
            WeakKeyDictionary()
        )

    def open_key(self, sealed: SealedKey, info: bytes, publisher: str) -> bytes:
        """The transport key that this publisher sealed, in one of its two forms.

        Raises:
            UnknownIntakeKeyError: this worker does not hold the intake key.
            BadSealError: the session is not this publisher's, the key does not open with this
                `info`, or either has another length.
        """
        if sealed.session is None:
            return open_secret(sealed, info, self._intake_keys)
        intake_key = held_intake_key(sealed, self._intake_keys)
        session = self._session(intake_key, from_base64(sealed.session), publisher)
        return open_under_session(session.reveal(), sealed, info)

    def _session(self, intake_key: IntakeKey, sealed: bytes, publisher: str) -> Secret:
        of_key = self._opened.setdefault(intake_key, defaultdict(OrderedDict))
        digest = hashlib.sha256(sealed).digest()
        known = of_key[publisher].get(digest) if publisher in of_key else None
        if known is not None:
            of_key[publisher].move_to_end(digest)
            return known
        secret = Secret(open_with(intake_key, sealed, session_info(self._deployment, publisher)))
        sessions = of_key[publisher]
        sessions[digest] = secret
        if len(sessions) > self._per_publisher:
            sessions.popitem(last=False)
        return secret
