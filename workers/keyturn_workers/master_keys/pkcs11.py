"""A master key on a PKCS #11 token: an HSM, a smart card, SoftHSM (SPEC 2.2).

The key never leaves the token: each derivation is one CKM_SHA256_HMAC there. Calls block, so they
run in threads, each with a session of its own during its call.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, PKCS11Error

from keyturn.crypto import Secret, expand_message
from keyturn.errors import KmsUnavailableError
from keyturn_workers.key_uris import Pkcs11Uri
from keyturn_workers.master_keys.daemon_threads import DaemonThreads
from keyturn_workers.master_keys.pkcs11_module import DeviceLostError, translate
from keyturn_workers.master_keys.pkcs11_token import (
    TokenAccess,
    close_quietly,
    find_key,
    key_name,
    key_template,
)
from keyturn_workers.master_keys.port import Derivation, KeyDescription
from keyturn_workers.settings import KmsSettings

_T = TypeVar("_T")
_KEK_BYTES: Final = 32
_KEY_BYTES: Final = 32
_USES: Final = (
    Attribute.SIGN,
    Attribute.VERIFY,
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.WRAP,
    Attribute.UNWRAP,
    Attribute.DERIVE,
)


@dataclass(slots=True)
class _KeySession:
    """A session with its handle of the key; both end with their epoch of the module."""

    epoch: int
    session: pkcs11.Session
    key: pkcs11.SignMixin


class Pkcs11MasterKey:
    """A key on a token, found by the attributes of its URI at the first call.

    Args:
        uri: Names the token and the key.
        settings: The module's path and the PIN where the URI has none; bounds.

    Raises:
        SettingsError: there is no module's path, or no PIN.
    """

    provider = "pkcs11"

    def __init__(self, uri: Pkcs11Uri, settings: KmsSettings) -> None:
        self._token = TokenAccess(uri, settings)
        self._uri = uri
        self._timeout_s = settings.kms_timeout_s
        size = min(settings.kms_concurrency, settings.pkcs11_sessions)
        self._threads = DaemonThreads("pkcs11", size)
        self._lock = threading.Lock()
        self._idle: list[_KeySession] = []

    async def derive(self, info: bytes) -> Derivation:
        """Compute one HMAC-SHA256 on the token."""
        message = expand_message(info)
        kek = await self._run(lambda key: key.sign(message, mechanism=Mechanism.SHA256_HMAC))
        if len(kek) != _KEK_BYTES:
            raise KmsUnavailableError("the PKCS #11 token's HMAC-SHA256 is not 32 bytes long")
        return Derivation(Secret(kek))

    async def describe(self) -> KeyDescription:
        """Read the key's attributes: is it in clear, can it be exported, was it made inside?"""
        return await self._run(partial(_describe, self._uri.location))

    async def aclose(self) -> None:
        """Close the sessions that are not in use. The module stays initialized."""
        with suppress(KmsUnavailableError, TimeoutError):
            await self._threads.run(self._close_idle, self._timeout_s)
        self._threads.close()

    async def _run(self, function: Callable[[pkcs11.SignMixin], _T]) -> _T:
        call = partial(_again_if_lost, partial(self._call, function))
        return await _bounded(self._threads, call, self._timeout_s)

    def _call(self, function: Callable[[pkcs11.SignMixin], _T]) -> _T:
        with self._token.module.call(self._timeout_s) as epoch:
            held = self._take(epoch) or self._open(epoch)
            try:
                result = function(held.key)
            except PKCS11Error as exc:
                failure = translate(exc)
                if not isinstance(failure, DeviceLostError):
                    close_quietly(held.session)
                raise failure from exc
            with self._lock:
                self._idle.append(held)
            return result

    def _take(self, epoch: int) -> _KeySession | None:
        """Take an idle session; those of earlier epochs have ended and are dropped."""
        with self._lock:
            self._idle = [held for held in self._idle if held.epoch == epoch]
            return self._idle.pop() if self._idle else None

    def _open(self, epoch: int) -> _KeySession:
        session = self._token.open_session(epoch)
        try:
            return _KeySession(epoch, session, find_key(session, self._uri))
        except DeviceLostError:
            raise  # closing what is lost may take as long again
        except KmsUnavailableError:
            close_quietly(session)
            raise

    def _close_idle(self) -> None:
        with self._token.module.call(self._timeout_s) as epoch:
            while held := self._take(epoch):
                close_quietly(held.session)


async def import_prk(uri: Pkcs11Uri, settings: KmsSettings, prk: Secret) -> None:
    """Put an existing master key's PRK onto a token, where nothing can read it any more.

    Args:
        uri: Names the token, and the key to be made by its label or id.
        settings: As for `Pkcs11MasterKey`.
        prk: 32 bytes, from `keyturn.crypto.master_prk`.

    Raises:
        ValueError: the token has a key of that name.
        SettingsError: a setting is missing.
        KmsUnavailableError: the token does not answer, or refuses.
    """
    template = {
        **key_name(uri),
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
        Attribute.VALUE: prk.reveal(),
        Attribute.TOKEN: True,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        **{use: use is Attribute.SIGN for use in _USES},
    }
    await _create(uri, settings, lambda session: session.create_object(template))


async def generate_key(uri: Pkcs11Uri, settings: KmsSettings) -> None:
    """Generate a master key's PRK inside a token, which never shows it.

    Args and errors as `import_prk`.
    """

    def generate(session: pkcs11.Session) -> object:
        return session.generate_key(
            KeyType.GENERIC_SECRET,
            _KEY_BYTES * 8,
            id=uri.id,
            label=uri.object,
            store=True,
            capabilities=MechanismFlag.SIGN,
            template={
                Attribute.PRIVATE: True,
                Attribute.SENSITIVE: True,
                Attribute.EXTRACTABLE: False,
            },
        )

    await _create(uri, settings, generate)


async def _create(
    uri: Pkcs11Uri, settings: KmsSettings, create: Callable[[pkcs11.Session], object]
) -> None:
    access = TokenAccess(uri, settings)
    threads = DaemonThreads("pkcs11-create", 1)
    once = partial(_create_once, access, uri, settings.kms_timeout_s, create)
    try:
        await _bounded(threads, partial(_again_if_lost, once), settings.kms_timeout_s)
    finally:
        threads.close()


def _create_once(
    access: TokenAccess,
    uri: Pkcs11Uri,
    timeout_s: float,
    create: Callable[[pkcs11.Session], object],
) -> None:
    with access.module.call(timeout_s) as epoch:
        session = access.open_session(epoch, writable=True)
        try:
            if any(True for _ in session.get_objects(key_template(uri))):
                raise ValueError("the token already has a matching key")
            create(session)
        except PKCS11Error as exc:
            raise translate(exc) from exc
        finally:
            close_quietly(session)


async def _bounded(threads: DaemonThreads, function: Callable[[], _T], timeout_s: float) -> _T:
    try:
        return await threads.run(function, timeout_s)
    except TimeoutError:
        raise KmsUnavailableError(
            f"the PKCS #11 token did not answer within {timeout_s:g} s"
        ) from None


def _again_if_lost(function: Callable[[], _T]) -> _T:
    """Call once more, with a new session, if the first one was lost."""
    try:
        return function()
    except DeviceLostError:
        return function()


def _describe(location: str, key: pkcs11.SignMixin) -> KeyDescription:
    """Say what the token says; an attribute that it does not have is unknown."""
    sensitive = _flag(key, Attribute.SENSITIVE)
    extractable = _flag(key, Attribute.EXTRACTABLE)
    local = _flag(key, Attribute.LOCAL)
    warnings = []
    if sensitive is False:
        warnings.append("the token reveals the key's value (CKA_SENSITIVE is false)")
    if extractable:
        warnings.append("the key can be exported, wrapped (CKA_EXTRACTABLE is true)")
    elif local and _flag(key, Attribute.NEVER_EXTRACTABLE) is False:
        warnings.append("the key could be exported earlier (CKA_NEVER_EXTRACTABLE is false)")
    if _flag(key, Attribute.DERIVE):
        # CKM_EXTRACT_KEY_FROM_KEY gives away a few bytes at a time.
        warnings.append("keys can be derived from it that can reveal it (CKA_DERIVE is true)")
    known = [
        value
        for value in (None if sensitive is None else not sensitive, extractable)
        if value is not None
    ]
    return KeyDescription(
        "pkcs11",
        location,
        exportable=any(known) if known else None,
        automatic_rotation=False,
        imported=None if local is None else not local,
        warnings=tuple(warnings),
    )


def _flag(key: pkcs11.SignMixin, attribute: Attribute) -> bool | None:
    try:
        return bool(key[attribute])
    except (pkcs11.AttributeTypeInvalid, pkcs11.AttributeSensitive):
        return None
