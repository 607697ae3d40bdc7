"""C_Initialize of a PKCS #11 module for use by several threads.

python-pkcs11 passes NULL to C_Initialize, by which an application promises that it never calls the
module from two threads at once. SoftHSM then switches its locks off, and concurrent calls corrupt
its memory. There is no option for that, so the module is initialized here, through the function
list that every module exports (PKCS #11 2.40, 5.2 and 5.4).
"""

import ctypes
import os
from typing import Final

_CKF_OS_LOCKING_OK: Final = 2
_CKR_OK: Final = 0
_CKR_CANT_LOCK: Final = 0x0A
_CKR_CRYPTOKI_ALREADY_INITIALIZED: Final = 0x191

# CK_RV C_Initialize(CK_VOID_PTR), CK_RV C_Finalize(CK_VOID_PTR)
_Function = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)


class CryptokiError(Exception):
    """A module cannot be initialized; the text has the function and its CK_RV."""


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

    Both release the interpreter's lock during the call.

    Args:
        path: The module; the dynamic loader maps it once, even if other code has loaded it.

    Attributes:
        is_shared: Whether this initializes the module for all of its users in this process.
            p11-kit's modules give each caller of C_GetFunctionList an instance of its own.

    Raises:
        CryptokiError: it is no PKCS #11 module, or cannot be loaded.
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
        """C_Initialize, with the operating system's locks; no error if it is initialized.

        Raises:
            CryptokiError: the module refused.
        """
        arguments = _Arguments(flags=_CKF_OS_LOCKING_OK)
        result = self._functions.initialize(ctypes.addressof(arguments))
        if result != _CKR_CRYPTOKI_ALREADY_INITIALIZED:
            _check("C_Initialize", result)

    def finalize(self) -> None:
        """C_Finalize: closes all sessions. No other thread may be in a call.

        A module whose device is gone may report an error. Whether it can be used again is what
        C_Initialize says.
        """
        self._functions.finalize(None)


def _check(function: str, result: int) -> None:
    if result == _CKR_CANT_LOCK:
        raise CryptokiError("the PKCS #11 module cannot be used by several threads")
    if result != _CKR_OK:
        raise CryptokiError(f"{function} of the PKCS #11 module failed with {result:#x}")
