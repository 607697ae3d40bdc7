"""Base64 is read strictly at every entrance: each byte string has exactly one spelling (SPEC 1)."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn import metadata
from keyturn.crypto import (
    IntakeKey,
    LinkClaims,
    RetryNote,
    Secret,
    SigningKey,
    from_base64,
    is_link_token,
    link_token,
    seal_record,
    to_base64,
    validate_base64,
)
from keyturn.errors import KeyturnError
from keyturn.evidence import parse as parse_evidence
from keyturn.messages import InlineBody, SealedSecret
from keyturn.project_keks import parse_project_keks
from keyturn.settings import PublisherSettings, seed_from_b64
from keyturn_workers.cli.audit import read_lines
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.console.auth.sessions import Account, Sessions, SignedOut
from keyturn_workers.console.form_tokens import FormExpiredError, FormTokens
from keyturn_workers.core.grants import parse_grants
from keyturn_workers.keys.master_keys.record_format import read_outer
from tests.unit.keyturn.evidence.shared import FIRST_KEY, chain_of

if TYPE_CHECKING:
    from collections.abc import Callable


# The decoder, and texts that it checked.


@given(st.binary(max_size=100))
def test_a_checked_text_is_the_same_text_and_carries_its_bytes(data: bytes) -> None:
    text = to_base64(data)
    checked = validate_base64(text)
    assert (checked, hash(checked), str(checked)) == (text, hash(text), text)
    assert from_base64(checked) == from_base64(text) == data
    assert orjson.dumps({"x": checked}) == orjson.dumps({"x": text})
    for again in (copy.deepcopy(checked), pickle.loads(pickle.dumps(checked))):  # noqa: S301
        assert (again, from_base64(again)) == (text, data)


@pytest.mark.parametrize("text", ["QR==", "QQ=", "QQ", "Q Q=", "QQ==\n", "-_==", "é"])
def test_what_is_no_base64_is_never_checked(text: str) -> None:
    with pytest.raises(ValueError, match="not standard base64"):
        validate_base64(text)


def test_what_is_made_of_a_checked_text_is_read_again() -> None:
    checked = validate_base64(to_base64(b"abc") + to_base64(b"def"))
    assert from_base64(checked[:4]) == b"abc"
    assert from_base64(checked + to_base64(b"ghi")) == b"abcdefghi"


def test_a_model_holds_it_and_serializes_it_as_text() -> None:
    body = InlineBody(inline=to_base64(b"sealed"))
    assert type(InlineBody(inline=to_base64(b"x")).inline) is not str
    assert body == InlineBody.model_validate_json(body.model_dump_json())
    assert body.model_dump(mode="json") == {"inline": to_base64(b"sealed")}


@given(st.binary(max_size=100))
def test_base64_round_trip(data: bytes) -> None:
    assert from_base64(to_base64(data)) == data


@given(st.text("AQg+/=-_ \n\0é", max_size=12))
def test_base64_has_one_spelling(text: str) -> None:
    """Against the standard library's decoder: accepted only where encoding gives the text back."""
    try:
        decoded = base64.b64decode(text, validate=True)
        canonical = base64.b64encode(decoded).decode() == text
    except ValueError:
        canonical = False
    if canonical:
        assert from_base64(text) == decoded
    else:
        with pytest.raises(ValueError, match=r"^not standard base64 with padding$"):
            from_base64(text)


@pytest.mark.parametrize(
    "text", ["QQ", "QQ=", "QR==", "QQ==\n", "Q Q==", "QQ==QQ==", "QQ===", "====", "_-==", "é", "A"]
)
def test_base64_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not standard base64 with padding$"):
        from_base64(text)


# The entrances.


_ROOT: Final = Path(__file__).parents[2]
_KEY: Final = SigningKey.from_seed(bytes(range(32)))
_RETRY_KEY: Final = _KEY.retry_key()
_NOTE: Final = RetryNote("q", "api", "0" * 64, 1, "storage_unavailable", "2026-11-24T10:00:00Z")
_CLAIMS: Final = LinkClaims("acme", "k", 2_000_000_000, inline=False)
_KEK: Final = Secret(b"k" * 32)
_EVIDENCE: Final = json.loads(chain_of(FIRST_KEY)[0])
_SESSIONS: Final = Sessions(
    _KEK, lambda *_: "stamp", SignedOut(None), session_s=1000, idle_s=100, clock=lambda: 1e6
)
_FORMS: Final = FormTokens()
_WRAPS: Final = metadata.build(
    metadata.Wraps("Cobblestone-256", b"u" * 104, b"a" * 104, 1, "0" * 16, "m1"), upload_id=None
)


@dataclass(frozen=True)
class Entrance:
    """A place where base64 is read.

    Attributes:
        text: A valid text.
        read: Reads a text there; raises, or returns a false value, where it is refused.
    """

    text: str
    read: Callable[[str], object]


def _publisher(name: str, value: str) -> PublisherSettings:
    fields: dict[str, Any] = {
        "amqp_url": "amqp://localhost",
        "publisher_name": "api",
        "publisher_key": to_base64(bytes(32)),
        "intake_public_key": _INTAKE,
        "event_public_key": to_base64(_KEY.public_bytes),
    }
    return PublisherSettings(**{**fields, name: value})


def _project_keks(kek: str) -> object:
    keks = [{"id": "m1", "kek": kek}]
    document = {"v": 1, "project": "acme", "created": "2026-11-24T10:00:00Z", "admin_keks": keks}
    return parse_project_keks(json.dumps(document))


def _record(sealed: str) -> object:
    record = {"v": 1, "project": "acme", "master_key": "m1", "sealed": sealed}
    return read_outer(json.dumps(record).encode(), "acme")


def _evidence(**changed: object) -> object:
    document = {**_EVIDENCE, **changed}
    return parse_evidence(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def _exported(body: str) -> object:
    headers = {"keyturn-signature": "", "keyturn-event-key": ""}
    line = json.dumps({"offset": 0, "body": body, "headers": headers})
    return list(read_lines(BytesIO(line.encode())))


def _verified(verify: Callable[..., None], *arguments: object) -> bool:
    verify(*arguments)
    return True


_INTAKE: Final = f"main:{to_base64(IntakeKey.from_seed(bytes(32)).public_bytes)}"
_SIGNATURE: Final = _EVIDENCE["signatures"][0]

ENTRANCES: Final = {
    "a request's signature": Entrance(
        _KEY.sign_request("d", "api", b"{}"),
        lambda text: _verified(_KEY.verify_key().verify_request, "d", "api", b"{}", text),
    ),
    "an event's signature": Entrance(
        _KEY.sign_event("d", b"{}"),
        lambda text: _verified(_KEY.verify_key().verify_event, "d", b"{}", text),
    ),
    "a retry's MAC": Entrance(
        _RETRY_KEY.mac("d", _NOTE), lambda text: _verified(_RETRY_KEY.verify, "d", _NOTE, text)
    ),
    "a sealed secret": Entrance(
        to_base64(bytes(1168)), lambda text: SealedSecret(intake_key="main", ciphertext=text)
    ),
    "an inline body": Entrance(to_base64(bytes(73)), lambda text: InlineBody(inline=text)),
    "the user wrap": Entrance(
        _WRAPS["enc-dek-user"], lambda text: metadata.parse({**_WRAPS, "enc-dek-user": text})
    ),
    "the admin wrap": Entrance(
        _WRAPS["enc-dek-admin"], lambda text: metadata.parse({**_WRAPS, "enc-dek-admin": text})
    ),
    "a tombstone": Entrance(
        to_base64(bytes(100)),
        lambda text: metadata.parse({"enc-algo": "deleted", "enc-dek-admin": text}),
    ),
    "the tag of an upload": Entrance(
        to_base64(bytes(16)), lambda text: metadata.upload_tag({"enc-upload-tag": text})
    ),
    "a record": Entrance(to_base64(seal_record(_KEK, "k", b"{}")), _record),
    "a seed in the settings": Entrance(to_base64(bytes(32)), seed_from_b64),
    "a publisher's key": Entrance(
        to_base64(bytes(32)), lambda text: _publisher("publisher_key", text)
    ),
    "an event key": Entrance(
        to_base64(_KEY.public_bytes), lambda text: _publisher("event_public_key", text)
    ),
    "an intake key": Entrance(_INTAKE, lambda text: _publisher("intake_public_key", text)),
    "a key in a grant": Entrance(
        to_base64(_KEY.public_bytes),
        lambda text: parse_grants({"api": {"keys": [text], "may": ["*"], "projects": ["*"]}}),
    ),
    "a project's KEK": Entrance(to_base64(bytes(32)), _project_keks),
    "the statement of evidence": Entrance(
        _EVIDENCE["payload"], lambda text: _evidence(payload=text)
    ),
    "the signature of evidence": Entrance(
        _SIGNATURE["sig"], lambda text: _evidence(signatures=[{**_SIGNATURE, "sig": text}])
    ),
    "an exported audit record": Entrance(to_base64(b"{}"), _exported),
    "a link's token": Entrance(
        link_token(_KEK, "d", _CLAIMS), lambda text: is_link_token(text, _KEK, "d", _CLAIMS)
    ),
    "a console's session": Entrance(
        _SESSIONS.begin(Account("password", "kim", "kim", "operate", "stamp")), _SESSIONS.read
    ),
    "a console's form": Entrance(
        _FORMS.make("session", "sweep"), lambda text: _FORMS.read(text, "session", "sweep")
    ),
}
# The settings take white space around a value, as files have it, but none inside.
_TRIMMED: Final = {"a seed in the settings", "a publisher's key", "an event key", "an intake key",
                   "a key in a grant"}  # fmt: skip
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def _with_stray_bits(text: str) -> str:
    """The same bytes, with another last letter: one that differs in bits that no byte uses."""
    letters = text.rstrip("=")
    alphabet = _ALPHABET + ("-_" if letters == text else "+/")
    last = alphabet[alphabet.index(letters[-1]) ^ 1]
    return f"{letters[:-1]}{last}{text[len(letters) :]}"


def _other_spellings(text: str) -> list[str]:
    middle = len(text) // 2
    spellings = [_with_stray_bits(text), f"{text}=", f"{text[:middle]}\n{text[middle:]}"]
    spellings += [f"{text[:middle]}!{text[middle:]}", f"{text}==", f"{text}\n"]
    return spellings + ([text.rstrip("=")] if text.endswith("=") else [])


def _reads(entrance: Entrance, text: str) -> bool:
    try:
        return bool(entrance.read(text))
    except (KeyturnError, ValueError, CommandError, FormExpiredError):
        return False


@pytest.mark.parametrize("name", ENTRANCES)
def test_an_entrance_reads_one_spelling(name: str) -> None:
    entrance = ENTRANCES[name]
    assert _reads(entrance, entrance.text)
    for spelling in _other_spellings(entrance.text):
        trimmed = name in _TRIMMED and spelling.strip() == entrance.text
        assert _reads(entrance, spelling) is trimmed, spelling[-20:]


@pytest.mark.parametrize("name", ENTRANCES)
def test_each_entrance_has_a_text_with_bits_to_spare(name: str) -> None:
    """Otherwise the case above would test nothing: a text without padding has no stray bits."""
    text = ENTRANCES[name].text
    assert _with_stray_bits(text) != text
    if text.endswith("="):
        with pytest.raises(ValueError, match="not standard base64"):
            from_base64(_with_stray_bits(text.rpartition(":")[2]))
    else:
        assert len(re.split(r"[.]", text)[-1]) % 4


# What decodes base64 in the libraries, each more leniently than the specification allows.
_DECODERS: Final = re.compile(
    r"\b(?:a2b_base64|\w*b64decode|decodebytes|Base64Bytes|Base64UrlBytes|Base64Str|atob)\b"
)
_ALLOWED: Final = {
    "contracts/keyturn/crypto/base64.py": "the strict decoder itself",
    "workers/keyturn_workers/pipeline/objects/hidden_wraps.py": "finds a wrap in whatever spelling",
    "workers/keyturn_workers/offline/verify/object_check.py": "finds a wrap, by code of its own",
    "clients/typescript/src/open/unwrap.ts": "compares with the one spelling",
    "clients/typescript/src/object_info.ts": "reads RFC 2047",
}


def test_no_other_decoder_is_used() -> None:
    sources = [
        path
        for folder, suffix in (
            ("contracts", "py"),
            ("workers", "py"),
            ("clients/typescript/src", "ts"),
        )
        for path in _ROOT.glob(f"{folder}/**/*.{suffix}")
    ]
    found = {str(p.relative_to(_ROOT)) for p in sources if _DECODERS.search(p.read_text())}
    assert len(sources) > 200
    assert found == _ALLOWED.keys()
