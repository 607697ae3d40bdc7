"""The known text of each master key id: whether this process has the right key (SPEC 2.2).

A text sealed under the id's record KEK, of a project name that no project can have, lies at
`.keyturn/keys/{id}.json`. The first process that may write creates it; a process that cannot
open it does not use that id. So a wrong key, a restored HSM of another site or a key whose version
moved seals nothing that the right key would then not open.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from keyturn.crypto import Secret
from keyturn.errors import CorruptObjectError, StorageUnavailableError, UnknownMasterKeyError
from keyturn.identifiers import key_check_s3_key
from keyturn_workers.errors import MissingError, PreconditionError, StorageAnswerError
from keyturn_workers.master_keys.record_format import (
    RECORD_HEADERS,
    open_sealed_part,
    read_outer,
    seal,
)
from keyturn_workers.storage import IfAbsent, Storage

RESERVED_PROJECT: Final = "*known-text"
"""No project has this name, so its record KEK seals nothing else."""

_KNOWN_TEXT: Final = {"text": "keyturn/v1/known-text"}
_MAX_BYTES: Final = 4096
# A master key that is not the one of its id is checked again after this time.
_WRONG_S: Final = 60.0

CheckMasterKey = Callable[[str, Secret], Awaitable[bool]]
"""Given an id and the record KEK of `RESERVED_PROJECT`; raises if it is another key.

False if there is nothing to compare it with yet."""

_log = structlog.get_logger()


class KnownText:
    """Whether the key of one id is still the one that the bucket knows by it.

    Args:
        master_key: The id.
        check: Opens the known text in the bucket; None if the key is taken as it is.
        valid_s: How long a check holds.
        clock_s: Seconds that only increase.
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
        """Whether no check is due.

        Raises:
            UnknownMasterKeyError: a moment ago the key was another one.
        """
        if self._check is None or self._clock_s() - self._checked_s < self._valid_s:
            return True
        if self._wrong is not None and self._clock_s() < self._wrong[1]:
            raise UnknownMasterKeyError(self._wrong[0].detail)
        return False

    async def confirm(self, derive: Callable[[], Awaitable[Secret]]) -> None:
        """Check the key.

        Args:
            derive: Derives the record KEK of `RESERVED_PROJECT` anew.

        Raises:
            UnknownMasterKeyError: it is another key than the bucket knows by this id.
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
    """Check that this process holds the master key that the bucket knows by this id.

    Args:
        storage: The bucket.
        master_key: The id.
        kek: The record KEK of `RESERVED_PROJECT` under the key that this process holds.
        create: Whether to create the known text if there is none. A reader may not write it.

    Returns:
        Whether there is a known text. Without one, a reader has to check again later.

    Raises:
        UnknownMasterKeyError: the known text does not open: it is another key.
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
    except StorageAnswerError as exc:
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
