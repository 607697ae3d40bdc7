"""The known text of each master key id shows if this process has the right key (SPEC 2.2).

The text is at `.keyturn/keys/{id}.json`, sealed under the id's record KEK of a project name that
no project can have. The first process that may write creates it; a process that cannot open it
does not use that id. So a wrong key, a restored HSM of another site or a key whose version changed
seals nothing that the right key could not open.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from keyturn.crypto.keys import Secret
from keyturn.errors import CorruptObjectError, StorageUnavailableError, UnknownMasterKeyError
from keyturn.identifiers import key_check_s3_key
from keyturn_workers.core.errors import MissingError, PreconditionError, StorageResponseError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import IfAbsent
from keyturn_workers.keys.master_keys.record_format import (
    RECORD_HEADERS,
    open_sealed_part,
    read_outer,
    seal,
)

RESERVED_PROJECT: Final = "*known-text"
"""No project has this name, so its record KEK seals nothing else."""

_KNOWN_TEXT: Final = {"text": "keyturn/v1/known-text"}
_MAX_BYTES: Final = 4096
# A master key that was not the right one for its id is checked again after this time.
_WRONG_S: Final = 60.0

CheckMasterKey = Callable[[str, Secret], Awaitable[bool]]
"""Checks the record KEK of `RESERVED_PROJECT` for a master key id; raises if the key is wrong.

False if there is no known text yet."""

_log = structlog.get_logger()


class KnownText:
    """Checks that a master key is still the one that the bucket knows by its id.

    `check` opens the known text in the bucket; None uses the key without a check. A check is valid
    for `valid_s`, by the monotonic clock `clock_s`.
    """

    def __init__(
        self,
        master_key: str,
        check: CheckMasterKey | None,
        *,
        valid_s: float,
        clock_s: Callable[[], float],
    ) -> None:
        self._master_key = master_key
        self._check = check
        self._valid_s = valid_s
        self._clock_s = clock_s
        self._checked_s = -math.inf
        # The KEK that opened the known text: later ones only have to equal it.
        self._kek: Secret | None = None
        self._wrong: tuple[UnknownMasterKeyError, float] | None = None

    def is_confirmed(self) -> bool:
        """Return whether no check is due.

        Raises:
            UnknownMasterKeyError: a check failed a moment ago.
        """
        if self._check is None or self._clock_s() - self._checked_s < self._valid_s:
            return True
        if self._wrong is not None and self._clock_s() < self._wrong[1]:
            raise UnknownMasterKeyError(self._wrong[0].detail)
        return False

    async def confirm(self, derive: Callable[[], Awaitable[Secret]]) -> None:
        """Check the key; `derive` derives the record KEK of `RESERVED_PROJECT` anew.

        Raises:
            UnknownMasterKeyError: it is not the key that the bucket knows by this id.
            KmsUnavailableError, StorageUnavailableError: it cannot be checked now.
        """
        began_s = self._clock_s()
        kek = await derive()
        try:
            await self._compare(kek)
        except UnknownMasterKeyError as exc:
            self._checked_s = -math.inf
            self._wrong = exc, self._clock_s() + _WRONG_S
            _log.error("master key not used", master_key=self._master_key, detail=exc.detail)
            raise
        self._checked_s = began_s

    async def _compare(self, kek: Secret) -> None:
        if self._kek is None:
            if self._check is not None and await self._check(self._master_key, kek):
                self._kek = kek
        elif self._kek != kek:
            raise UnknownMasterKeyError(
                f"{self._master_key} (the provider's key has changed since it was checked)"
            )


async def check_known_text(storage: Storage, master_key: str, kek: Secret, *, create: bool) -> bool:
    """Check that this process has the master key that the bucket knows by this id.

    Return True if there is a known text. With `create`, one is created if there is none; a reader
    may not write it and has to check again later. `kek` is the record KEK of `RESERVED_PROJECT`
    under this process's key.

    Raises:
        UnknownMasterKeyError: the known text does not open: the key is another one.
        StorageUnavailableError: it cannot be read or created now.
    """
    s3_key = key_check_s3_key(master_key)
    try:
        body = await _read(storage, s3_key)
        if body is None and create:
            try:
                record = seal(s3_key, RESERVED_PROJECT, master_key, _KNOWN_TEXT, kek)
                await storage.put(s3_key, record, RECORD_HEADERS, condition=IfAbsent())
            except PreconditionError:
                body = await _read(storage, s3_key)
    except StorageResponseError as exc:
        raise StorageUnavailableError("the known text of a master key is not accessible") from exc
    if body is not None and not _opens(body, master_key, s3_key, kek):
        raise UnknownMasterKeyError(
            f"{master_key} (the key that this process holds does not match the bucket: {s3_key} "
            "does not open)"
        )
    return body is not None or create


async def _read(storage: Storage, s3_key: str) -> bytes | None:
    try:
        _, body = await storage.read(s3_key, max_bytes=_MAX_BYTES)
    except MissingError:
        return None
    return body


def _opens(body: bytes, master_key: str, s3_key: str, kek: Secret) -> bool:
    try:
        name, sealed = read_outer(body, RESERVED_PROJECT)
        return name == master_key and open_sealed_part(sealed, s3_key, kek) == _KNOWN_TEXT
    except CorruptObjectError:
        return False
