"""A master key on a PKCS #11 token: an HSM, a smart card, SoftHSM (SPEC 2.2).

The key never leaves the token: each derivation is one CKM_SHA256_HMAC there. Calls block, so they
run in threads, and each has its own session while it runs.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass, PKCS11Error

from keyturn.crypto.keys import Secret, expand_message
from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn_workers.core.key_uris import Pkcs11Uri
from keyturn_workers.keys.master_keys.pkcs11_module import (
    DeviceLostError,
    Pkcs11Module,
    module_at,
    translate,
)
from keyturn_workers.keys.master_keys.port import Derivation, KeyDescription, KmsRefusedError
from keyturn_workers.process.settings import KmsSettings

_T = TypeVar("_T")
_KEK_BYTES: Final = 32
_KEY_BYTES: Final = 32
_HMAC_KEY_TYPES: Final = (KeyType.GENERIC_SECRET, KeyType.SHA256_HMAC)
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

    `settings` give the module's path and the PIN if the URI does not.

    Raises:
        SettingsError: the module's path or the PIN is missing.
    """

    provider = "pkcs11"

    def __init__(self, uri: Pkcs11Uri, settings: KmsSettings) -> None:
        self._token = TokenAccess(uri, settings)
        self._uri = uri
        self._calls = BlockingCalls(
            min(settings.kms_concurrency, settings.pkcs11_sessions), settings.kms_timeout_s
        )
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
        """Read the key's attributes: is it in the clear, exportable, generated inside?"""
        return await self._run(partial(_describe, self._uri.location))

    async def aclose(self) -> None:
        """Close the sessions that are not in use. The module stays initialized."""
        with suppress(KmsUnavailableError):
            await self._calls.run(self._close_idle)

    async def _run(self, function: Callable[[pkcs11.SignMixin], _T]) -> _T:
        return await self._calls.run(partial(_again_if_lost, partial(self._call, function)))

    def _call(self, function: Callable[[pkcs11.SignMixin], _T]) -> _T:
        with self._token.module.call(self._calls.timeout_s) as epoch:
            held = self._take(epoch) or self._open(epoch)
            try:
                result = function(held.key)
            except PKCS11Error as exc:
                failure = translate(exc)
                if not isinstance(failure, DeviceLostError):
                    _close_quietly(held.session)
                raise failure from exc
            with self._lock:
                self._idle.append(held)
            return result

    def _take(self, epoch: int) -> _KeySession | None:
        """Take an idle session; drop sessions of earlier epochs, which have ended."""
        with self._lock:
            self._idle = [held for held in self._idle if held.epoch == epoch]
            return self._idle.pop() if self._idle else None

    def _open(self, epoch: int) -> _KeySession:
        session = self._token.open_session(epoch)
        try:
            return _KeySession(epoch, session, find_key(session, self._uri))
        except DeviceLostError:
            raise  # closing a lost session may take as long again
        except KmsUnavailableError:
            _close_quietly(session)
            raise

    def _close_idle(self) -> None:
        with self._token.module.call(self._calls.timeout_s) as epoch:
            while held := self._take(epoch):
                _close_quietly(held.session)


async def import_prk(uri: Pkcs11Uri, settings: KmsSettings, prk: Secret) -> None:
    """Import an existing master key's PRK into a token, from which it can never be read.

    The URI names the token, and the new key by its label or id. The PRK is 32 bytes, from
    `keyturn.crypto.master_prk`.

    Raises:
        ValueError: the token has a key of that name.
        SettingsError: a setting is missing.
        KmsUnavailableError: the token does not respond, or refuses.
    """
    template = {
        **_key_name(uri),
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

    Arguments and errors are as for `import_prk`.
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

    def create_once() -> None:
        with access.module.call(settings.kms_timeout_s) as epoch:
            session = access.open_session(epoch, writable=True)
            try:
                if any(True for _ in session.get_objects(key_template(uri))):
                    raise ValueError("the token already has a matching key")
                create(session)
            except PKCS11Error as exc:
                raise translate(exc) from exc
            finally:
                _close_quietly(session)

    await BlockingCalls(1, settings.kms_timeout_s).run(partial(_again_if_lost, create_once))


def _again_if_lost(function: Callable[[], _T]) -> _T:
    """Call the function; if its session was lost, call it once more, with a new one."""
    try:
        return function()
    except DeviceLostError:
        return function()


class BlockingCalls:
    """Run blocking calls that cannot be canceled, each in its own thread.

    If a caller gives up, its thread still occupies a place until the call returns. Unlike the
    threads of `concurrent.futures`, these do not keep the process from exiting while a call hangs.
    There are at most `size` threads; a caller waits for a place and the result up to `timeout_s`.
    """

    def __init__(self, size: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._places = asyncio.Semaphore(size)

    async def run(self, function: Callable[[], _T]) -> _T:
        """Call the function in a thread; return its result, or raise its error.

        Raises:
            KmsUnavailableError: there was no result in time; a later one is discarded.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._places.acquire()
                return await self._start(function)
        except TimeoutError:
            raise KmsUnavailableError(
                f"the PKCS #11 token did not respond within {self.timeout_s:g} s"
            ) from None

    def _start(self, function: Callable[[], _T]) -> asyncio.Future[_T]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def settle(settle_future: Callable[[], None]) -> None:
            self._places.release()
            if not future.done():
                settle_future()

        def serve() -> None:
            try:
                result = function()
                outcome = partial(future.set_result, result)
            except BaseException as exc:  # noqa: BLE001  # passed to the caller
                outcome = partial(future.set_exception, exc)
            with suppress(RuntimeError):  # the process is ending, and its loop is closed
                loop.call_soon_threadsafe(settle, outcome)

        try:
            threading.Thread(target=serve, name="pkcs11", daemon=True).start()
        except RuntimeError:  # the process or its container has too many threads
            self._places.release()
            raise KmsUnavailableError("no thread for a call to the PKCS #11 token") from None
        return future


class TokenAccess:
    """The module, the token and the PIN that a URI and the settings name.

    Raises:
        SettingsError: the module's path or the PIN is missing.
    """

    def __init__(self, uri: Pkcs11Uri, settings: KmsSettings) -> None:
        path = uri.module_path or settings.pkcs11_module
        if path is None:
            raise SettingsError("KEYTURN_PKCS11_MODULE is missing")
        self._uri = uri
        self._pin = uri.pin
        self._pin_file = None if uri.pin_source is None else Path(uri.pin_source)
        if self._pin is None and self._pin_file is None:
            self._pin_file = settings.pkcs11_pin_file
            if settings.pkcs11_pin is not None:
                self._pin = Secret(settings.pkcs11_pin.get_secret_value().encode())
        if self._pin is None and self._pin_file is None:
            raise SettingsError("KEYTURN_PKCS11_PIN or KEYTURN_PKCS11_PIN_FILE is missing")
        self.module: Pkcs11Module = module_at(str(path))

    def open_session(self, epoch: int, *, writable: bool = False) -> pkcs11.Session:
        """Open a session of the token's user. Only within `module.call`."""
        token = self.module.token(self._uri)
        return self.module.open_session(token, self._read_pin, epoch, writable=writable)

    def _read_pin(self) -> Secret:
        """The PIN; a file is read at each login, so that a corrected one is noticed."""
        if self._pin is not None:
            return self._pin
        assert self._pin_file is not None  # noqa: S101  # one of the two is set
        try:
            pin = self._pin_file.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise KmsUnavailableError("the file with the PKCS #11 PIN cannot be read") from None
        if not pin:  # the file may be in the making; an empty PIN would count as a wrong one
            raise KmsUnavailableError("the file with the PKCS #11 PIN is empty")
        return Secret(pin.encode())


def _close_quietly(session: pkcs11.Session) -> None:
    """Close a session that may be lost."""
    with suppress(PKCS11Error):
        session.close()


def _key_name(uri: Pkcs11Uri) -> dict[Attribute, object]:
    """The label and the id of the key that a URI names."""
    name: dict[Attribute, object] = {}
    if uri.object is not None:
        name[Attribute.LABEL] = uri.object
    if uri.id is not None:
        name[Attribute.ID] = uri.id
    return name


def key_template(uri: Pkcs11Uri) -> dict[Attribute, object]:
    """The attributes that identify the key that a URI names."""
    return {Attribute.CLASS: ObjectClass.SECRET_KEY, **_key_name(uri)}


def find_key(session: pkcs11.Session, uri: Pkcs11Uri) -> pkcs11.SignMixin:
    """Find the one key that the URI matches, and check that it can compute an HMAC.

    Raises:
        KmsRefusedError: no key or more than one matches, or it is of another kind.
    """
    try:
        keys = list(session.get_objects(key_template(uri)))
        if not keys:
            raise KmsRefusedError("the PKCS #11 token has no key that matches the URI")
        if len(keys) > 1:
            raise KmsRefusedError(
                f"{len(keys)} keys of the PKCS #11 token match the URI: add id= to the URI"
            )
        key = keys[0]
        if not isinstance(key, pkcs11.SignMixin) or not _is_hmac_key(key):
            raise KmsRefusedError(
                "the PKCS #11 key is not an HMAC key: its type must be GENERIC_SECRET or "
                "SHA256_HMAC, and CKA_SIGN must be true"
            )
    except PKCS11Error as exc:
        raise translate(exc) from exc
    return key


def _is_hmac_key(key: pkcs11.SignMixin) -> bool:
    try:
        return key[Attribute.KEY_TYPE] in _HMAC_KEY_TYPES
    except ValueError:  # a type that python-pkcs11 does not know
        return False


def _describe(location: str, key: pkcs11.SignMixin) -> KeyDescription:
    """Describe a key by the token's attributes; a missing attribute is unknown."""
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
        # CKM_EXTRACT_KEY_FROM_KEY reveals a few bytes at a time.
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
