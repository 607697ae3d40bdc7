"""A PKCS #11 module as this process uses it: initialization, tokens, logins (SPEC 2.2).

These belong to the process and not to a key. C_Initialize is called once for a module. C_Finalize,
needed after a device was lost, ends the sessions of all keys, and must not run during a call. A
login is valid for all sessions of a token, and a wrong PIN counts against all of them.

python-pkcs11 passes NULL to C_Initialize, by which an application promises that it never calls the
module from two threads at once. SoftHSM then switches its locks off, and concurrent calls corrupt
its memory. python-pkcs11 has no option for this, so the module is initialized here, through the
function list that every module exports (PKCS #11 2.40, 5.2 and 5.4).
"""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Final, Protocol

import pkcs11
from pkcs11 import PKCS11Error, Session, Slot, Token, TokenFlag

from keyturn.crypto.keys import Secret
from keyturn.errors import KmsUnavailableError
from keyturn_workers.core.key_uris import Pkcs11Uri
from keyturn_workers.keys.master_keys.port import KmsRefusedError

_LOST: Final = (
    pkcs11.DeviceError,
    pkcs11.DeviceRemoved,
    pkcs11.FunctionFailed,
    pkcs11.GeneralError,
    pkcs11.HostMemory,
    pkcs11.KeyHandleInvalid,
    pkcs11.ObjectHandleInvalid,
    pkcs11.OperationActive,
    pkcs11.OperationNotInitialized,
    pkcs11.SessionClosed,
    pkcs11.SessionHandleInvalid,
    pkcs11.SlotIDInvalid,
    pkcs11.TokenNotPresent,
    pkcs11.TokenNotRecognised,
    pkcs11.UserNotLoggedIn,
)
_BUSY: Final = (pkcs11.DeviceMemory, pkcs11.SessionCount)
_PIN_LOCKED: Final = "has locked its user PIN: its security officer must unlock it"
_WRONG_PIN: Final = (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange)

_CKF_OS_LOCKING_OK: Final = 2
_CKR_OK: Final = 0
_CKR_CANT_LOCK: Final = 0x0A
_CKR_CRYPTOKI_ALREADY_INITIALIZED: Final = 0x191

# CK_RV C_Initialize(CK_VOID_PTR), CK_RV C_Finalize(CK_VOID_PTR)
_Function = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)


class CryptokiError(Exception):
    """A module cannot be initialized; the text names the function and its CK_RV."""


class _Arguments(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS."""

    _fields_ = (
        ("create_mutex", ctypes.c_void_p),
        ("destroy_mutex", ctypes.c_void_p),
        ("lock_mutex", ctypes.c_void_p),
        ("unlock_mutex", ctypes.c_void_p),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


class _Functions(ctypes.Structure):
    """The head of CK_FUNCTION_LIST."""

    _fields_ = (
        ("version", ctypes.c_ubyte * 2),
        ("initialize", _Function),
        ("finalize", _Function),
    )


class Cryptoki:
    """The two functions of a module that begin and end its use by this process.

    Both release the interpreter's lock during the call. The dynamic loader maps a module only once,
    even if other code has loaded it.

    Attributes:
        is_shared: True if this initializes the module for all of its users in this process.
            p11-kit's modules give each caller of C_GetFunctionList its own instance.

    Raises:
        CryptokiError: the file is not a PKCS #11 module, or cannot be loaded.
    """

    def __init__(self, path: str) -> None:
        try:
            get_functions = ctypes.CDLL(path, mode=os.RTLD_NOW | os.RTLD_LOCAL).C_GetFunctionList
        except (OSError, AttributeError) as exc:
            raise CryptokiError(f"the PKCS #11 module {path} cannot be loaded") from exc
        get_functions.argtypes = [ctypes.POINTER(ctypes.POINTER(_Functions))]
        get_functions.restype = ctypes.c_ulong
        first, second = ctypes.POINTER(_Functions)(), ctypes.POINTER(_Functions)()
        for functions in (first, second):
            _check("C_GetFunctionList", get_functions(ctypes.byref(functions)))
        self._functions = first.contents
        self.is_shared = ctypes.addressof(first.contents) == ctypes.addressof(second.contents)

    def initialize(self) -> None:
        """C_Initialize with the operating system's locks; no error if already initialized.

        Raises:
            CryptokiError: the module refused.
        """
        arguments = _Arguments(flags=_CKF_OS_LOCKING_OK)
        result = self._functions.initialize(ctypes.addressof(arguments))
        if result != _CKR_CRYPTOKI_ALREADY_INITIALIZED:
            _check("C_Initialize", result)

    def finalize(self) -> None:
        """C_Finalize: closes all sessions. No other thread may be in a call.

        A module whose device is gone may report an error. Only C_Initialize shows if the module can
        be used again.
        """
        self._functions.finalize(None)


def _check(function: str, result: int) -> None:
    if result == _CKR_CANT_LOCK:
        raise CryptokiError("the PKCS #11 module cannot be used by several threads")
    if result != _CKR_OK:
        raise CryptokiError(f"{function} of the PKCS #11 module failed with {result:#x}")


class DeviceLostError(KmsUnavailableError):
    """The device, the token or a session is gone: a new session may work."""


class _Initializer(Protocol):
    """Begins and ends the use of a module."""

    def initialize(self) -> None: ...
    def finalize(self) -> None: ...


class _Library(_Initializer, Protocol):
    """`pkcs11.lib`."""

    def get_slots(self, token_present: bool = False) -> list[Slot]: ...  # noqa: FBT001, FBT002


def translate(error: PKCS11Error) -> KmsUnavailableError:
    """Translate a call's error for the caller."""
    # "Not initialized", and codes that python-pkcs11 does not know, are plain PKCS11Error.
    if type(error) is PKCS11Error:
        return DeviceLostError(f"the PKCS #11 module failed: {error}")
    name = type(error).__name__
    if isinstance(error, _LOST):
        return DeviceLostError(f"the PKCS #11 token does not respond ({name})")
    if isinstance(error, _BUSY):
        return KmsUnavailableError(f"the PKCS #11 token is out of resources ({name})")
    return KmsRefusedError(f"the PKCS #11 token refused the call ({name})")


class Pkcs11Module:
    """One module in this process. All methods block; use the others only within `call`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._condition = threading.Condition()
        self._login = threading.Lock()
        self._library: _Library | None = None
        self._initializer: _Initializer | None = None
        # Held during a call if the module must not be called by two threads at once.
        self._turn: threading.Lock | None = None
        self._epoch = 0
        self._lost = True
        # The start of each call under way.
        self._calls: dict[object, float] = {}
        # The session that keeps a token's login, by epoch and slot. Ending the last session logs
        # out.
        self._logins: dict[tuple[int, int], Session] = {}
        self._refused: list[tuple[bytes, Secret]] = []

    @contextmanager
    def call(self, timeout_s: float) -> Iterator[int]:
        """Keep the module initialized during a block; yield the epoch of its sessions.

        Sessions and keys of an earlier epoch must not be used any more. Another thread's call
        counts as hung after `timeout_s`.

        Raises:
            KmsUnavailableError: the module cannot be initialized.
        """
        with self._condition:
            self._load()
        with nullcontext() if self._turn is None else _held(self._turn, timeout_s):
            call = object()
            with self._condition:
                self._prepare(timeout_s)
                self._calls[call] = time.monotonic()
                epoch = self._epoch
            try:
                yield epoch
            except DeviceLostError:
                self._lose(epoch)
                raise
            finally:
                with self._condition:
                    del self._calls[call]
                    self._condition.notify_all()

    def token(self, uri: Pkcs11Uri) -> Token:
        """Find the one token that the URI matches. Only within `call`.

        Raises:
            KmsUnavailableError: no token or more than one matches.
        """
        assert self._library is not None  # noqa: S101  # within `call`
        try:
            tokens = [
                token
                for slot in self._library.get_slots(token_present=True)
                if (token := _token_in(slot)) is not None and _matches(token, uri)
            ]
        except PKCS11Error as exc:
            raise translate(exc) from exc
        if not tokens:
            # A module may look for tokens only when it is initialized.
            raise DeviceLostError("no PKCS #11 token matches the master key's URI")
        if len(tokens) > 1:
            raise KmsRefusedError(
                f"{len(tokens)} PKCS #11 tokens match the master key's URI: add serial= to the URI"
            )
        return tokens[0]

    def open_session(
        self, token: Token, read_pin: Callable[[], Secret], epoch: int, *, writable: bool = False
    ) -> Session:
        """Open a session of the token's user; only the first needs the PIN. Only within `call`.

        Raises:
            KmsUnavailableError: the token refuses the PIN, or refused it earlier.
        """
        try:
            with self._login:
                if (epoch, token.slot.slot_id) not in self._logins:
                    self._logins[epoch, token.slot.slot_id] = self._log_in(token, read_pin)
            return token.open(rw=writable)
        except PKCS11Error as exc:
            raise translate(exc) from exc

    def _log_in(self, token: Token, read_pin: Callable[[], Secret]) -> Session:
        """Log in, but never with a refused PIN: a few wrong ones lock a token for good."""
        pin = read_pin()

        def has_new_pin() -> bool:
            with suppress(KmsUnavailableError):
                return read_pin() != pin
            return False

        def refusal(text: str) -> KmsRefusedError:
            return KmsRefusedError(f"the PKCS #11 token {text}", has_new_credential=has_new_pin)

        if (token.serial, pin) in self._refused:
            raise refusal(
                "refused the PIN; it is not tried again until the PIN file changes or this process "
                "restarts"
            )
        if token.flags & TokenFlag.USER_PIN_LOCKED:
            raise refusal(_PIN_LOCKED)
        if token.flags & TokenFlag.USER_PIN_FINAL_TRY:
            raise KmsRefusedError(
                "one more wrong PIN locks the PKCS #11 token, so the PIN is not tried: log in by "
                "hand once to reset the token's count"
            )
        try:
            return token.open(user_pin=pin.reveal().decode())
        except pkcs11.UserAlreadyLoggedIn:
            return token.open()
        except _WRONG_PIN:
            text = (
                "refused the PIN; correct it in the PIN file, or correct the setting and restart "
                "this process"
            )
        except pkcs11.PinLocked:
            text = _PIN_LOCKED
        except pkcs11.PinExpired:
            text = "has an expired PIN: set another"
        self._refused.append((token.serial, pin))
        raise refusal(text)

    def _lose(self, epoch: int) -> None:
        """Let the next call initialize the module, unless another has done so already."""
        with self._condition:
            if epoch == self._epoch:
                self._lost = True

    def _prepare(self, timeout_s: float) -> None:
        """Initialize the module, at first or after a loss. The caller has the condition's lock."""
        if self._lost:
            # C_Finalize must not run during a call, and a hung one may never return.
            self._condition.wait_for(
                lambda: not self._lost or not self._calls or self._hangs(timeout_s), timeout_s
            )
        if self._lost:
            self._epoch += 1
            self._logins.clear()
            if not self._calls:
                self._initialize()
            self._lost = False

    def _hangs(self, timeout_s: float) -> bool:
        now = time.monotonic()
        return any(now - began > timeout_s for began in self._calls.values())

    def _load(self) -> None:
        """Load the module, unless it is loaded, and find out if threads may share it."""
        if self._library is not None:
            return
        try:
            library: _Library = pkcs11.lib(self._path)
            library.finalize()
            cryptoki = Cryptoki(self._path)
        except (PKCS11Error, CryptokiError) as exc:
            raise _unusable(exc) from exc
        # A module that python-pkcs11 itself initializes must not be called by two threads at once.
        self._turn = None if cryptoki.is_shared else threading.Lock()
        self._initializer = cryptoki if cryptoki.is_shared else library
        self._library = library

    def _initialize(self) -> None:
        assert self._initializer is not None  # noqa: S101  # the module is loaded
        try:
            self._initializer.finalize()
            self._initializer.initialize()
        except (PKCS11Error, CryptokiError) as exc:
            raise _unusable(exc) from exc


def _unusable(error: Exception) -> KmsUnavailableError:
    text = str(error) or type(error).__name__
    return KmsUnavailableError(f"the PKCS #11 module cannot be used: {text}")


@contextmanager
def _held(lock: threading.Lock, timeout_s: float) -> Iterator[None]:
    if not lock.acquire(timeout=timeout_s):
        raise KmsUnavailableError("a call to the PKCS #11 module hangs")
    try:
        yield
    finally:
        lock.release()


_modules: Final[dict[str, Pkcs11Module]] = {}
_modules_lock: Final = threading.Lock()


def module_at(path: str) -> Pkcs11Module:
    """Return this process's one `Pkcs11Module` for a file. Loads nothing yet."""
    # A name without a slash is looked up by the dynamic loader.
    path = os.path.realpath(path) if "/" in path else path
    with _modules_lock:
        return _modules.setdefault(path, Pkcs11Module(path))


def _token_in(slot: Slot) -> Token | None:
    try:
        return slot.get_token()
    except (pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised):
        return None


def _matches(token: Token, uri: Pkcs11Uri) -> bool:
    if not token.flags & TokenFlag.TOKEN_INITIALIZED:
        return False
    asked_and_found = (
        (uri.token, token.label),
        (uri.serial, token.serial.decode(errors="replace")),
        (uri.manufacturer, token.manufacturer_id),
        (uri.model, token.model),
        (uri.slot_id, token.slot.slot_id),
    )
    return all(asked in (None, found) for asked, found in asked_and_found)
