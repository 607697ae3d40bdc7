"""A module in this process: initialization, tokens and logins, on a module written in Python."""

import ctypes
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pkcs11
import pytest
from pkcs11 import PKCS11Error, Session, Token, TokenFlag

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError
from keyturn_workers.core.key_uris import Pkcs11Uri
from keyturn_workers.keys.master_keys.pkcs11_module import (
    Cryptoki,
    CryptokiError,
    DeviceLostError,
    Pkcs11Module,
    module_at,
    translate,
)
from keyturn_workers.keys.master_keys.port import KmsRefusedError
from tests.support.fake_pkcs11 import PIN, FakeModule, FakeSlot, FakeToken

TIMEOUT_S = 5.0
URI = Pkcs11Uri("pkcs11:token=keyturn;object=m1", object="m1", token="keyturn")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeModule:
    module = FakeModule()
    module.install(monkeypatch)
    return module


@pytest.fixture
def module(fake: FakeModule) -> Pkcs11Module:
    del fake
    return Pkcs11Module("fake.so")


def _lose(module: Pkcs11Module) -> None:
    with pytest.raises(DeviceLostError), module.call(TIMEOUT_S):
        raise DeviceLostError("gone")


def _token(module: Pkcs11Module, uri: Pkcs11Uri = URI) -> Token:
    with module.call(TIMEOUT_S):
        return module.token(uri)


def _open(module: Pkcs11Module, pin: str = PIN) -> Session:
    with module.call(TIMEOUT_S) as epoch:
        return module.open_session(module.token(URI), lambda: Secret(pin.encode()), epoch)


def test_a_module_is_initialized_once(fake: FakeModule, module: Pkcs11Module) -> None:
    for _ in range(3):
        with module.call(TIMEOUT_S) as epoch:
            assert epoch == 1
    assert fake.initialized == 1


def test_a_lost_device_ends_the_epoch(fake: FakeModule, module: Pkcs11Module) -> None:
    with module.call(TIMEOUT_S):
        before = fake.finalized
    _lose(module)
    with module.call(TIMEOUT_S) as epoch:
        assert epoch == 2
    assert (fake.initialized, fake.finalized) == (2, before + 1)


def test_other_errors_do_not(module: Pkcs11Module) -> None:
    with pytest.raises(KmsUnavailableError), module.call(TIMEOUT_S):
        raise KmsUnavailableError("no such key")
    with module.call(TIMEOUT_S) as epoch:
        assert epoch == 1


def test_a_loss_is_repaired_once_for_all_calls_that_saw_it(
    fake: FakeModule, module: Pkcs11Module
) -> None:
    with pytest.raises(DeviceLostError), module.call(TIMEOUT_S), module.call(TIMEOUT_S):
        raise DeviceLostError("both saw it")
    for _ in range(2):
        with module.call(TIMEOUT_S) as epoch:
            assert epoch == 2
    assert fake.initialized == 2


def test_a_device_that_is_back_is_used_again(fake: FakeModule, module: Pkcs11Module) -> None:
    with module.call(TIMEOUT_S):
        pass
    _lose(module)
    fake.failure = CryptokiError("C_Initialize failed")
    with pytest.raises(KmsUnavailableError, match="C_Initialize failed"), module.call(TIMEOUT_S):
        pytest.fail("a call went through")
    fake.failure = None
    with module.call(TIMEOUT_S):
        assert fake.initialized == 2


def test_no_call_is_under_way_while_the_module_is_finalized(
    fake: FakeModule, module: Pkcs11Module
) -> None:
    """C_Finalize during a call is undefined."""
    entered = threading.Event()

    def next_call() -> None:
        with module.call(TIMEOUT_S):
            entered.set()

    with module.call(TIMEOUT_S):
        _lose(module)
        before = fake.finalized
        thread = threading.Thread(target=next_call)
        thread.start()
        assert not entered.wait(0.2)
        assert fake.finalized == before
    thread.join(10)
    assert entered.is_set()
    assert fake.finalized == before + 1


def test_a_hanging_call_keeps_the_module_as_it_is_and_others_work(
    fake: FakeModule, module: Pkcs11Module
) -> None:
    with module.call(TIMEOUT_S):  # it never returns
        _lose(module)
        before = fake.finalized
        with module.call(0.05) as epoch:
            assert epoch == 2
        assert fake.finalized == before


def test_a_loss_that_is_known_late_does_not_end_the_next_epoch(module: Pkcs11Module) -> None:
    with suppress(DeviceLostError), module.call(TIMEOUT_S):  # it hangs for a while
        _lose(module)
        with module.call(0.05):
            pass
        raise DeviceLostError("gone")
    with module.call(TIMEOUT_S) as epoch:
        assert epoch == 2


def test_a_module_without_locks_serves_one_call_at_a_time(
    fake: FakeModule, module: Pkcs11Module
) -> None:
    fake.is_shared = False
    with (
        module.call(TIMEOUT_S),
        pytest.raises(KmsUnavailableError, match="hangs"),
        module.call(0.05),
    ):
        pytest.fail("two calls at once")
    with module.call(0.05):
        pass


def test_a_module_that_cannot_be_loaded_is_named(fake: FakeModule, module: Pkcs11Module) -> None:
    fake.failure = PKCS11Error("fake.so: no such file")
    with pytest.raises(KmsUnavailableError, match=r"cannot be used: fake\.so"), module.call(1):
        pytest.fail("a call went through")


def test_a_file_is_one_module_by_whatever_name(tmp_path: Path) -> None:
    (tmp_path / "real.so").touch()
    (tmp_path / "link.so").symlink_to(tmp_path / "real.so")
    assert module_at(str(tmp_path / "link.so")) is module_at(str(tmp_path / "real.so"))
    assert module_at(str(tmp_path / "other.so")) is not module_at(str(tmp_path / "real.so"))


@pytest.mark.parametrize(
    "uri",
    [
        Pkcs11Uri("", object="m1", token="keyturn"),
        Pkcs11Uri("", object="m1", serial="0001", manufacturer="Fake", model="F1", slot_id=7),
    ],
)
def test_a_token_is_found_by_all_its_attributes(
    fake: FakeModule, module: Pkcs11Module, uri: Pkcs11Uri
) -> None:
    fake.slots += [FakeSlot(8, None), FakeToken(9, "other", b"0002").slot]
    assert _token(module, uri).serial == b"0001"


@pytest.mark.parametrize("name", ["token", "serial", "manufacturer", "model"])
def test_one_attribute_that_differs_is_enough(
    fake: FakeModule, module: Pkcs11Module, name: str
) -> None:
    del fake
    with pytest.raises(KmsUnavailableError, match="no PKCS #11 token matches"):
        _token(module, Pkcs11Uri("", object="m1", **{name: "x"}))  # type: ignore[arg-type]


def test_two_tokens_that_match_are_refused(fake: FakeModule, module: Pkcs11Module) -> None:
    fake.slots.append(FakeToken(8, "keyturn", b"0002").slot)
    with pytest.raises(KmsUnavailableError, match="2 PKCS #11 tokens match"):
        _token(module)


def test_a_token_that_was_never_initialized_matches_nothing(
    fake: FakeModule, module: Pkcs11Module
) -> None:
    fake.token.flags = TokenFlag(0)
    with pytest.raises(KmsUnavailableError, match="no PKCS #11 token"):
        _token(module, Pkcs11Uri("", object="m1"))


def test_one_login_serves_all_sessions_of_a_token(fake: FakeModule, module: Pkcs11Module) -> None:
    for _ in range(3):
        _open(module)
    assert fake.token.pins == [PIN]


def test_a_new_epoch_logs_in_again(fake: FakeModule, module: Pkcs11Module) -> None:
    _open(module)
    _lose(module)
    _open(module)
    assert fake.token.pins == [PIN, PIN]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (pkcs11.PinIncorrect, "refused the PIN"),
        (pkcs11.PinLenRange, "refused the PIN"),
        (pkcs11.PinLocked, "has locked its user PIN"),
        (pkcs11.PinExpired, "expired"),
    ],
)
def test_a_refused_pin_is_tried_once(
    fake: FakeModule, module: Pkcs11Module, error: type[PKCS11Error], text: str
) -> None:
    fake.token.login_error = error
    with pytest.raises(KmsUnavailableError, match=text):
        _open(module, "wrong")
    for _ in range(5):
        with pytest.raises(KmsUnavailableError, match="not tried again"):
            _open(module, "wrong")
        _lose(module)  # not after the module was initialized again either
    assert fake.token.pins == ["wrong"]
    if error is not pkcs11.PinLocked:
        _open(module, PIN)


def test_a_new_pin_may_be_tried_at_once(module: Pkcs11Module) -> None:
    pins = ["wrong"]
    with pytest.raises(KmsRefusedError) as caught, module.call(TIMEOUT_S) as epoch:
        module.open_session(module.token(URI), lambda: Secret(pins[-1].encode()), epoch)
    assert not caught.value.has_new_credential()
    pins.append(PIN)
    assert caught.value.has_new_credential()


def test_a_refused_pin_is_not_shown(module: Pkcs11Module) -> None:
    for _ in range(2):
        with pytest.raises(KmsUnavailableError) as caught:
            _open(module, "wrong-canary")
        assert "canary" not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        (TokenFlag.USER_PIN_FINAL_TRY, "one more wrong PIN locks"),
        (TokenFlag.USER_PIN_LOCKED, "has locked its user PIN"),
    ],
)
def test_the_last_try_is_left_to_people(
    fake: FakeModule, module: Pkcs11Module, flag: TokenFlag, text: str
) -> None:
    fake.token.flags |= flag
    with pytest.raises(KmsUnavailableError, match=text):
        _open(module)
    assert fake.token.pins == []


def test_a_token_that_is_logged_in_already_serves(fake: FakeModule, module: Pkcs11Module) -> None:
    fake.token.login_error = pkcs11.UserAlreadyLoggedIn
    _open(module, "another")
    assert len(fake.token.sessions) == 2


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (pkcs11.DeviceRemoved(), True),
        (pkcs11.SessionHandleInvalid(), True),
        (pkcs11.UserNotLoggedIn(), True),
        (PKCS11Error("Unmapped error code 0x80000001"), True),
        (pkcs11.MechanismInvalid(), False),
        (pkcs11.SessionCount(), False),
    ],
)
def test_an_error_says_whether_a_new_session_may_help(error: PKCS11Error, *, lost: bool) -> None:
    translated = translate(error)
    assert isinstance(translated, DeviceLostError) is lost
    assert "PKCS #11" in translated.detail


# C_Initialize for several threads, with the functions of a module written in Python.

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
def library(monkeypatch: pytest.MonkeyPatch) -> _Module:
    found = _Module()
    monkeypatch.setattr(ctypes, "CDLL", lambda _path, mode: found if mode else None)
    return found


def test_the_module_may_use_the_locks_of_the_system(library: _Module) -> None:
    Cryptoki("m.so").initialize()
    assert library.flags == [2]  # CKF_OS_LOCKING_OK


def test_a_module_that_is_initialized_already_is_as_good(library: _Module) -> None:
    library.result = 0x191
    Cryptoki("m.so").initialize()


@pytest.mark.parametrize(
    ("result", "text"), [(0x0A, "cannot be used by several threads"), (0x30, "C_Initialize.*0x30")]
)
def test_a_refusal_is_named(library: _Module, result: int, text: str) -> None:
    library.result = result
    with pytest.raises(CryptokiError, match=text):
        Cryptoki("m.so").initialize()


def test_a_device_that_is_gone_does_not_keep_the_module_from_ending(library: _Module) -> None:
    Cryptoki("m.so").finalize()
    assert library.finalized == 1


def test_a_module_with_one_list_of_functions_is_shared(library: _Module) -> None:
    assert Cryptoki("m.so").is_shared
    library.add_instance()
    assert not Cryptoki("m.so").is_shared


def test_what_is_no_module_is_refused(tmp_path: Path) -> None:
    for path in (str(tmp_path / "missing.so"), "libc.so.6"):
        with pytest.raises(CryptokiError, match="cannot be loaded"):
            Cryptoki(path)
