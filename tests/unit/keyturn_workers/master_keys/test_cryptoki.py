"""C_Initialize for several threads, with the functions of a module written in Python."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from keyturn_workers.master_keys.cryptoki import Cryptoki, CryptokiError

_Function = ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)


class _Functions(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_ubyte * 2),
        ("initialize", _Function),
        ("finalize", _Function),
    )


class _Module:
    """`ctypes.CDLL` of a module; its results are as set."""

    def __init__(self) -> None:
        self.result = 0
        self.flags: list[int] = []
        self.finalized = 0
        self.instances = [self._new()]
        self.C_GetFunctionList = self._GetFunctionList(self)

    class _GetFunctionList:
        argtypes: Any = None
        restype: Any = None

        def __init__(self, module: "_Module") -> None:
            self._module = module

        def __call__(self, reference: Any) -> int:
            functions = self._module.instances[0]
            if len(self._module.instances) > 1:
                self._module.instances.pop(0)
            reference._obj.contents = functions
            return 0

    def _new(self) -> _Functions:
        return _Functions((2, 40), _Function(self._initialize), _Function(self._finalize))

    def add_instance(self) -> None:
        self.instances.append(self._new())

    def _initialize(self, arguments: int) -> int:
        pointers, flags = 4 * ctypes.sizeof(ctypes.c_void_p), ctypes.c_ulong
        self.flags.append(flags.from_address(arguments + pointers).value)
        return self.result

    def _finalize(self, _reserved: int | None) -> int:
        self.finalized += 1
        return 0x32  # CKR_DEVICE_REMOVED


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> _Module:
    found = _Module()
    monkeypatch.setattr(ctypes, "CDLL", lambda _path, mode: found if mode else None)
    return found


def test_the_module_may_use_the_locks_of_the_system(module: _Module) -> None:
    Cryptoki("m.so").initialize()
    assert module.flags == [2]  # CKF_OS_LOCKING_OK


def test_a_module_that_is_initialized_already_is_as_good(module: _Module) -> None:
    module.result = 0x191
    Cryptoki("m.so").initialize()


@pytest.mark.parametrize(
    ("result", "text"), [(0x0A, "cannot be used by several threads"), (0x30, "C_Initialize.*0x30")]
)
def test_a_refusal_is_named(module: _Module, result: int, text: str) -> None:
    module.result = result
    with pytest.raises(CryptokiError, match=text):
        Cryptoki("m.so").initialize()


def test_a_device_that_is_gone_does_not_keep_the_module_from_ending(module: _Module) -> None:
    Cryptoki("m.so").finalize()
    assert module.finalized == 1


def test_a_module_with_one_list_of_functions_is_shared(module: _Module) -> None:
    assert Cryptoki("m.so").is_shared
    module.add_instance()
    assert not Cryptoki("m.so").is_shared


def test_what_is_no_module_is_refused(tmp_path: Path) -> None:
    for path in (str(tmp_path / "missing.so"), "libc.so.6"):
        with pytest.raises(CryptokiError, match="cannot be loaded"):
            Cryptoki(path)
