"""Authenticates callers by their project's current API key, or by a link (SPEC 9.1, 9.3).

The KEK derived from the key must equal, in constant time, the KEK in the project's keyring; a
link's token must be the MAC under that KEK. Authentication comes before any read of an object. A
wrong key, an unknown project, a rotated key and an invalid link get the same response text, after
about the same time: a refusal takes a minimum time. A request without a well-formed API key is
refused at once with another text: no keyring is looked up, so the text reveals nothing about a
project. API keys and tokens are never logged or kept.
"""

import asyncio
import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeAlias

import structlog

from keyturn.crypto.keys import Secret, check_api_key, user_kek
from keyturn.crypto.links import UploadLinkClaims, is_link_token
from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    CustomerKeyUnavailableError,
    KeyringRolledBackError,
    ProjectErasedError,
    StorageUnavailableError,
    UnauthorizedError,
    UnknownMasterKeyError,
    UnknownProjectError,
)
from keyturn.identifiers import is_project
from keyturn_workers.core.errors import StorageResponseError
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.gateway.keyring_lookups import KeyringLookups
from keyturn_workers.gateway.request import Link, UploadLink
from keyturn_workers.keys.keyring.marks import KeyringContradictedError, KeyringErasingError
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.process.background import share

REFUSAL_MIN_S: Final = 0.1
"""The minimum time of a 401: more than a keyring read, so that the time does not show one."""
LINK_MAX_AGE_S: Final = 2.0
"""The maximum age of the keyring for a link, however long keyrings are cached."""
_MAX_FAILURES: Final = 10_000
_SCHEME: Final = "bearer"
_FORM: Final = "Authorization: Bearer <API key>"
# The KEK is derived for this project if the path has no valid project id.
_PLACEHOLDER_PROJECT: Final = "nobody"
_PLACEHOLDER_KEK: Final = Secret(os.urandom(32))

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller, by a snapshot of the project's keyring.

    `knew_marks` is true if the newest marks were known when the caller came: then no mark
    contradicts the keyring. `upload_link` limits the upload of a caller by upload link.
    """

    project: str
    snapshot: KeyringSnapshot
    kek: Secret = field(repr=False)
    knew_marks: bool
    upload_link: UploadLinkClaims | None = None


Matches: TypeAlias = Callable[[Secret], bool]
"""Checks, in constant time, if the caller's key or link belongs to this KEK of a project."""


class NoApiKeyError(UnauthorizedError):
    """The request has no well-formed API key. The detail says why, whatever the project is."""


class AuthenticationError(UnauthorizedError):
    """The caller is refused. Respond at `not_before` (`time.monotonic`) at the earliest."""

    def __init__(self, not_before: float) -> None:
        super().__init__()
        self.not_before = not_before


class Authenticator:
    """Authenticates callers by the keyrings.

    A rotated key is accepted for as long as `keyrings` caches its keyring, a link for at most
    `LINK_MAX_AGE_S`. Links are bound to the name of the `deployment`. A keyring that cannot be
    opened is not read again for `cache_s`. A refusal takes at least `refusal_min_s`.
    """

    def __init__(
        self,
        keyrings: KeyringReader,
        lookups: KeyringLookups,
        pepper: Secret,
        *,
        deployment: str,
        cache_s: float,
        refusal_min_s: float = REFUSAL_MIN_S,
    ) -> None:
        self._keyrings = keyrings
        self._lookups = lookups
        self._pepper = pepper.reveal().decode()
        self._deployment = deployment
        self._cache_s = cache_s
        self._refusal_min_s = refusal_min_s
        self._failures: OrderedDict[str, tuple[float, CodedError]] = OrderedDict()
        self._reading: dict[str, tuple[float, asyncio.Task[KeyringSnapshot]]] = {}

    async def authenticate(self, project: str, authorization: list[str]) -> Caller:
        """Return the caller, if the key is the project's current one.

        `project` is as in the path, and may be invalid; `authorization` has the values of all
        `Authorization` headers.

        Raises:
            NoApiKeyError: no well-formed API key was sent.
            AuthenticationError: the key is not current, or there is no such project.
            CorruptObjectError: the keyring was forged, moved or damaged.
            KeyringRolledBackError: a mark contradicts the keyring.
            UnknownMasterKeyError, StorageUnavailableError: try again later.
        """
        began = time.monotonic()
        api_key = _api_key(authorization)
        # An unknown project costs the same computation as a known one.
        name = project if is_project(project) else _PLACEHOLDER_PROJECT
        kek = self.derive_kek(api_key, name)
        return await self._authenticate(project, partial(_equal, kek), self._cache_s, began)

    async def with_marks(self, caller: Caller) -> Caller:
        """Return the caller for a publication, authenticated again if the marks were not known.

        The holder of an old API key, whom a rolled-back keyring admits, could read the same objects
        before. But a request published for that key would be made in its owner's name.

        Raises:
            MarksUnavailableError: the marks are still not known.
            Other errors as `reauthenticate`.
        """
        if caller.knew_marks:
            return caller
        await self._keyrings.require_current()
        return await self.reauthenticate(caller)

    async def authenticate_link(
        self, project: str, object_key: str | None, link: Link | UploadLink | None
    ) -> Caller:
        """Return a caller who may read or upload this one object, if the link is for it.

        An expired or malformed link needs no keyring: none would make it valid. `project` is as in
        the path; `object_key` is None if the path has no valid key, `link` if it is malformed.

        Raises:
            AuthenticationError, CorruptObjectError, UnknownMasterKeyError,
            StorageUnavailableError: as `authenticate`.
        """
        began = time.monotonic()
        if object_key is None or link is None or link.expires <= time.time():
            raise AuthenticationError(self._not_before(began))
        # An invalid project id may contain a zero byte, which a token never covers.
        name = project if is_project(project) else _PLACEHOLDER_PROJECT
        claims = link.claims(name, object_key)

        def matches(kek: Secret) -> bool:
            return is_link_token(link.token, kek, self._deployment, claims)

        max_age_s = min(self._cache_s, LINK_MAX_AGE_S)
        caller = await self._authenticate(project, matches, max_age_s, began)
        return replace(caller, upload_link=claims if isinstance(claims, UploadLinkClaims) else None)

    async def _authenticate(
        self, project: str, matches: Matches, max_age_s: float, began: float
    ) -> Caller:
        known, knew_marks = is_project(project), self._keyrings.is_current
        try:
            snapshot = await self._keyring_for(project, matches, max_age_s) if known else None
        except CodedError as exc:
            await asyncio.sleep(self._not_before(began) - time.monotonic())
            # The detail is for authenticated callers only.
            raise type(exc) from exc
        kek = _PLACEHOLDER_KEK if snapshot is None else snapshot.desired.user_kek
        if matches(kek) and snapshot is not None:
            return Caller(project, snapshot, kek, knew_marks)
        raise AuthenticationError(self._not_before(began))

    def _not_before(self, began: float) -> float:
        """Return when to send a refusal: after the minimum, or the next multiple of it.

        So the time of a slow read shows only as a multiple of the minimum.
        """
        elapsed = time.monotonic() - began
        return (
            began + self._refusal_min_s * (elapsed // self._refusal_min_s + 1)
            if self._refusal_min_s
            else began
        )

    async def reauthenticate(self, caller: Caller) -> Caller:
        """Authenticate the caller again, by a keyring read that starts now.

        A caller by link is identified by the KEK that the link was made under.

        Raises:
            UnauthorizedError: the key has been rotated.
            CorruptObjectError, UnknownMasterKeyError, StorageUnavailableError: as `authenticate`.
        """
        try:
            snapshot = await self._keyrings.read_fresh(caller.project)
        except (UnknownProjectError, ProjectErasedError) as exc:
            raise UnauthorizedError from exc
        except StorageResponseError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        if not _equal(caller.kek, snapshot.desired.user_kek):
            raise UnauthorizedError
        return replace(caller, snapshot=snapshot)

    def derive_kek(self, api_key: str, project: str) -> Secret:
        """Derive the KEK of a project's API key.

        Raises:
            ValueError: the key does not have the form of SPEC 1.
        """
        return user_kek(api_key, project, self._pepper)

    async def _keyring_for(
        self, project: str, matches: Matches, max_age_s: float
    ) -> KeyringSnapshot | None:
        """Return the keyring to authenticate the caller by, or None.

        A separate read is made only if the key or link matched the last read. All other callers
        share lookups sent after the request came. So the current key, or a link made with it, is
        never refused, and a wrong one is refused by the storage's present state, for unknown
        projects too.
        """
        since, failure = self._failures.get(project, (0.0, None))
        if failure is not None and time.monotonic() - since <= self._cache_s:
            raise type(failure)(failure.detail)
        try:
            known = self._keyrings.get_last(project)
            if known is not None and matches(known.desired.user_kek):
                snapshot = await self._recent(project, max_age_s)
                if snapshot is not None and matches(snapshot.desired.user_kek):
                    return snapshot
            joined = await self._lookups.join(project, max_age_s)
            if joined is not None and matches(joined.desired.user_kek):
                return joined
            return await self._lookups.look_up(
                project, lambda found: matches(found.desired.user_kek)
            )
        except (CorruptObjectError, UnknownMasterKeyError) as exc:
            self._remember_failure(project, exc)
            raise
        except KeyringErasingError as exc:
            kek = exc.stored.keyring.current.kek
            if kek is None or not matches(kek):
                return None  # that a project is being erased is no news for strangers
            raise CustomerKeyUnavailableError(exc.detail) from exc
        except KeyringContradictedError as exc:
            failure = KeyringRolledBackError(exc.detail)
            self._remember_failure(project, failure)
            raise failure from exc

    async def _recent(self, project: str, max_age_s: float) -> KeyringSnapshot | None:
        """Return the keyring by a read that started within `max_age_s`, or None.

        `max_age_s` is the cache's time, or shorter.
        """
        try:
            snapshot = self._keyrings.get_cached(project) or await self._read_shared(project)
            age_s = self._keyrings.clock.local_s() - snapshot.sent_s
            if max_age_s < self._cache_s and age_s > max_age_s:
                snapshot = await self._keyrings.read_fresh(project)
        except (UnknownProjectError, ProjectErasedError):
            return None
        except StorageResponseError as exc:
            raise StorageUnavailableError(str(exc)) from exc
        return snapshot

    def _remember_failure(self, project: str, failure: CodedError) -> None:
        """Keep the failure as long as a keyring would be cached, so that retries cost no read."""
        _log.error(
            "keyring cannot be opened", project=project, code=failure.code, detail=failure.detail
        )
        self._failures[project] = time.monotonic(), failure
        self._failures.move_to_end(project)
        while len(self._failures) > _MAX_FAILURES:
            self._failures.popitem(last=False)

    async def _read_shared(self, project: str) -> KeyringSnapshot:
        """Read the keyring, or join a read in progress that started recently enough.

        A delayed response shows the keyring as it was when the read started. Joining it late
        would accept a key that was rotated long ago.
        """
        started, reading = self._reading.get(project, (0.0, None))
        if reading is None:
            reading = share(self._keyrings.read_recent(project))
            self._reading[project] = time.monotonic(), reading
            reading.add_done_callback(lambda _: self._reading.pop(project))
        elif time.monotonic() - started > self._cache_s:
            return await self._keyrings.read_fresh(project)
        return await asyncio.shield(reading)


def _api_key(authorization: list[str]) -> str:
    """Return the API key of the only `Authorization` header.

    Raises:
        NoApiKeyError: it is missing or malformed. The error repeats nothing of the header.
    """
    if not authorization:
        raise NoApiKeyError(f"no API key was sent: use the header {_FORM}")
    if len(authorization) > 1:
        raise NoApiKeyError("more than one Authorization header was sent")
    scheme, _, credentials = authorization[0].partition(" ")
    if scheme.lower() != _SCHEME:
        raise NoApiKeyError(f"the Authorization header is not of the form {_FORM}")
    api_key = credentials.strip(" ")
    if not api_key:
        raise NoApiKeyError("no API key was sent: the Authorization header ends after Bearer")
    try:
        check_api_key(api_key)
    except ValueError as exc:  # its text names the rule, never the key
        raise NoApiKeyError(f"the bearer token is not an API key: {exc}") from exc
    return api_key


def _equal(one: Secret, other: Secret) -> bool:
    return hmac.compare_digest(one.reveal(), other.reveal())
