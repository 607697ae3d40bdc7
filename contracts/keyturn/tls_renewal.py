"""A client's TLS files, read again when they change (SPEC 11).

Each new connection uses what the files contain when its handshake begins; open connections keep
what they have. So a renewed client certificate or a changed authority needs no restart. Files that
cannot be used change nothing: the previous ones stay in use.

No task watches the files. A client library keeps one context for all its connections, so the
context itself checks the files, once for each handshake.
"""

import logging
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from keyturn.errors import SettingsError
from keyturn.tls import FileState, PeerSettings, client_context, expiry, file_state

# A renewal writes one file after the other; until both are there, no problem is reported.
_SETTLED_NS: Final = 10**9

_States: TypeAlias = dict[str, FileState | None]

_log = logging.getLogger(__name__)


def renewing_context(
    names: PeerSettings,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> ssl.SSLContext:
    """As `client_context`, for all connections of a long-running process.

    Raises:
        SettingsError: names the setting whose file cannot be used.
    """
    if ca is None and certificate is None and key is None:
        return client_context(names)
    return _RenewingContext(ssl.PROTOCOL_TLS_CLIENT, names, ca, certificate, key)


class _RenewingContext(ssl.SSLContext):
    """Wraps connections with a context made from the current files. It trusts no CA itself."""

    def __init__(
        self,
        _: int,
        names: PeerSettings,
        ca: Path | None,
        certificate: Path | None,
        key: Path | None,
    ) -> None:
        super().__init__()
        self._names = names
        self._files = (ca, certificate, key)
        self._used = self._states()
        self._current = client_context(names, *self._files)
        # The files that were last reported as unusable.
        self._unusable: _States | None = None

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """As in `ssl`, with what the files contain now. asyncio and uvloop call this."""
        self._renew()
        return self._current.wrap_bio(*args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """As in `ssl`, with what the files contain now."""
        self._renew()
        return self._current.wrap_socket(*args, **kwargs)

    def _renew(self) -> None:
        states = self._states()
        if states in (self._used, self._unusable):
            return
        changed = [name for name, state in states.items() if state != self._used[name]]
        try:
            context = client_context(self._names, *self._files)
            expires = self._expiry() if self._names.certificate in changed else None
        except SettingsError as exc:
            self._refuse(states, str(exc))
            return
        if self._states() != states:
            return  # they changed while they were read: the next connection checks again
        self._current, self._used, self._unusable = context, states, None
        until = "" if expires is None else f", expires {expires}"
        _log.info("certificate renewed: %s%s", ", ".join(changed), until)

    def _refuse(self, states: _States, problem: str) -> None:
        """Keep what is in use, and report the problem once, if the files have settled."""
        changed_ns = max((state.changed_ns for state in states.values() if state), default=0)
        if time.time_ns() - changed_ns >= _SETTLED_NS:
            self._unusable = states
            _log.error("certificate not renewed; the old one stays in use: %s", problem)

    def _expiry(self) -> datetime | None:
        _, certificate, _ = self._files
        expires = None if certificate is None else expiry(certificate)
        if expires is not None and expires < datetime.now(UTC):
            raise SettingsError(f"{self._names.certificate} has expired")
        return expires

    def _states(self) -> _States:
        names = (self._names.ca, self._names.certificate, self._names.key)
        return {
            name: file_state(path)
            for name, path in zip(names, self._files, strict=True)
            if path is not None
        }
