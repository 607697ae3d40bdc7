"""Who may read: the holder of a project's current API key, and nobody else (SPEC 9.1).

The KEK that follows from the key must equal, in constant time, the KEK that the project's
keyring seals. This is decided before anything about an object is read. A wrong key, a
project that there is not and a key that was turned away are one refusal, in the same words
and, by a floor under its time, about as fast as one another.
It must never log or keep an API key.
"""

import asyncio
import hmac
import os
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

import structlog

from keyturn.crypto import Secret, user_kek
from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    StorageUnavailableError,
    UnauthorizedError,
    UnknownMasterKeyError,
    UnknownProjectError,
)
from keyturn.identifiers import is_project
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.gateway.keyring_lookups import KeyringLookups
from keyturn_workers.keyring import KeyringReader, KeyringSnapshot

# Longer than a keyring takes to be read, so that a refusal does not tell whether one was.
REFUSAL_FLOOR_S: Final = 0.1
_MAX_FAILED: Final = 10_000
_BEARER: Final = "bearer "
_NOBODY: Final = "nobody"
# A key of the right form that nobody has, so that a malformed one costs the same.
_NO_KEY: Final = "0" * 43
_NO_KEK: Final = Secret(os.urandom(32))

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller who holds the project's key, by the keyring as it was observed."""

    project: str
    snapshot: KeyringSnapshot
    kek: Secret = field(repr=False)


class AuthenticationError(UnauthorizedError):
    """The refusal of all; `not_before` is when it may be told, by `time.monotonic`."""

    def __init__(self, not_before: float) -> None:
        super().__init__()
        self.not_before = not_before


class Authenticator:
    """Admits callers by the keyrings alone.

    Args:
        keyrings: Reads them, cached for as long as a turned key may still pass.
        lookups: Looks them up for callers whom no cached one admits.
        pepper: The deployment's (SPEC 2.1).
        cache_s: How long it is known of a project that its keyring does not open.
        floor_s: The least time that a refusal takes.
    """

    def __init__(
        self,
        keyrings: KeyringReader,
        lookups: KeyringLookups,
        pepper: Secret,
        *,
        cache_s: float,
        floor_s: float = REFUSAL_FLOOR_S,
    ) -> None:
        self._keyrings = keyrings
        self._lookups = lookups
        self._pepper = pepper.reveal().decode()
        self._cache_s = cache_s
        self._floor_s = floor_s
        self._failed: OrderedDict[str, tuple[float, CodedError]] = OrderedDict()
        self._reading: dict[str, tuple[float, asyncio.Task[KeyringSnapshot]]] = {}

    async def authenticate(self, project: str, authorization: list[str]) -> Caller:
        """The caller, if the key is the project's current one.

        Args:
            project: As the path names it.
            authorization: The values of all `Authorization` headers.

        Raises:
            NotAdmittedError: it is not, or there is no such project.
            CorruptObjectError: the keyring was forged, moved or damaged.
            UnknownMasterKeyError, StorageUnavailableError: try again later.
        """
        began = time.monotonic()
        # As much is computed for a project that there is not as for one that there is.
        name = project if is_project(project) else _NOBODY
        kek = self._kek_of(_bearer(authorization), name)
        try:
            snapshot = await self._keyring_for(project, kek) if name == project else None
        except CodedError as exc:
            await asyncio.sleep(self._not_before(began) - time.monotonic())
            # The detail is for whoever is admitted, and nobody can be.
            raise type(exc) from exc
        wanted = _NO_KEK if snapshot is None else snapshot.desired.user_kek
        if _same(kek, wanted) and snapshot is not None:
            return Caller(project, snapshot, kek)
        raise AuthenticationError(self._not_before(began))

    def _not_before(self, began: float) -> float:
        """When a refusal may be told: the floor, or the next multiple of it.

        A read that took longer than the floor shows no more than in which multiple it ended.
        """
        waited = time.monotonic() - began
        return began + self._floor_s * (waited // self._floor_s + 1) if self._floor_s else began

    async def reauthenticate(self, caller: Caller) -> Caller:
        """The same caller by a keyring read that begins now.

        Raises:
            UnauthorizedError: the key was turned meanwhile.
            CorruptObjectError, UnknownMasterKeyError, StorageUnavailableError: as `authenticate`.
        """
        try:
            snapshot = await self._keyrings.read_fresh(caller.project)
        except UnknownProjectError as exc:
            raise UnauthorizedError from exc
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        if not _same(caller.kek, snapshot.desired.user_kek):
            raise UnauthorizedError
        return Caller(caller.project, snapshot, caller.kek)

    def derive_kek(self, api_key: str, project: str) -> Secret:
        """The KEK that a project's API key leads to.

        Raises:
            ValueError: the key has not the form of SPEC 1.
        """
        return user_kek(api_key, project, self._pepper)

    def _kek_of(self, api_key: str, project: str) -> Secret:
        """The same; of a key that has not the form, nobody's KEK."""
        try:
            return self.derive_kek(api_key, project)
        except ValueError:
            self.derive_kek(_NO_KEY, project)
            return Secret(os.urandom(32))

    async def _keyring_for(self, project: str, kek: Secret) -> KeyringSnapshot | None:
        """The keyring that decides about a caller with this KEK, or None where there is none.

        Only a KEK that was the project's when this process last read it costs a read of its own.
        All others share lookups that are sent after they came: the current key is never refused,
        and a wrong one is by what the storage says now, whether there is such a project or not.
        """
        since, failure = self._failed.get(project, (0.0, None))
        if failure is not None and time.monotonic() - since <= self._cache_s:
            raise type(failure)(failure.detail)
        try:
            known = self._keyrings.get_last(project)
            if known is not None and _same(kek, known.desired.user_kek):
                snapshot = await self._recent(project)
                if snapshot is not None and _same(kek, snapshot.desired.user_kek):
                    return snapshot
            joined = await self._lookups.joined(project, self._cache_s)
            if joined is not None and _same(kek, joined.desired.user_kek):
                return joined
            return await self._lookups.current(project)
        except (CorruptObjectError, UnknownMasterKeyError) as exc:
            self._remember(project, exc)
            raise

    async def _recent(self, project: str) -> KeyringSnapshot | None:
        """The keyring by a read that began within the cache's seconds, or None."""
        try:
            return self._keyrings.get_cached(project) or await self._joined(project)
        except UnknownProjectError:
            return None
        except StorageAnswerError as exc:
            raise StorageUnavailableError(str(exc)) from exc

    def _remember(self, project: str, failure: CodedError) -> None:
        """For as long as a keyring would be: whoever asks again costs no read."""
        told = {"code": failure.code, "detail": failure.detail}
        _log.error("keyring does not open", project=project, **told)
        self._failed[project] = time.monotonic(), failure
        self._failed.move_to_end(project)
        while len(self._failed) > _MAX_FAILED:
            self._failed.popitem(last=False)

    async def _joined(self, project: str) -> KeyringSnapshot:
        """One read for all who come while it is under way, and began recently enough.

        An answer that stalls on its way shows what stood when its read began: joined late, it
        would admit a key that was turned long ago.
        """
        began, reading = self._reading.get(project, (0.0, None))
        if reading is None:
            reading = asyncio.create_task(self._keyrings.read_recent(project))
            self._reading[project] = time.monotonic(), reading
            reading.add_done_callback(lambda done: self._read(project, done))
        elif time.monotonic() - began > self._cache_s:
            return await self._keyrings.read_fresh(project)
        return await asyncio.shield(reading)

    def _read(self, project: str, done: asyncio.Task[KeyringSnapshot]) -> None:
        del self._reading[project]
        if not done.cancelled():
            done.exception()  # all who waited for it may be gone


def _bearer(authorization: list[str]) -> str:
    """The API key of the one `Authorization` header; an empty text where there is none."""
    if len(authorization) != 1 or authorization[0][: len(_BEARER)].lower() != _BEARER:
        return ""
    return authorization[0][len(_BEARER) :].strip(" ")


def _same(one: Secret, other: Secret) -> bool:
    return hmac.compare_digest(one.reveal(), other.reveal())
