"""TLS contexts from files: what cannot be used is named in one line, and never shown (SPEC 11)."""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import SettingsError
from keyturn.tls import BROKER, GATEWAY, client_context, speaks_tls
from tests.support.tls_proxy import server_context, tls_proxy
from tools.servers.certificates import Authority

if TYPE_CHECKING:
    from pathlib import Path

_NO_PEM = "this is no certificate, and no key\n"


def test_a_context_verifies_names_and_speaks_nothing_old(tmp_path: Path) -> None:
    made = Authority(tmp_path).issue()
    for context in (
        client_context(BROKER),
        client_context(BROKER, made.ca),
        client_context(BROKER, made.ca, made.certificate, made.key),
        client_context(GATEWAY, made.ca, with_system=True),
    ):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_private_authority_replaces_those_of_the_system(tmp_path: Path) -> None:
    """Unless they are to count beside it: a redirect may lead to a public server."""
    ca = Authority(tmp_path).ca
    assert len(client_context(BROKER, ca).get_ca_certs()) == 1
    system = len(client_context(BROKER).get_ca_certs())
    assert len(client_context(GATEWAY, ca, with_system=True).get_ca_certs()) == system + 1


def _refusal(ca: Path | None, certificate: Path | None = None, key: Path | None = None) -> str:
    with pytest.raises(SettingsError) as refused:
        client_context(BROKER, ca, certificate, key)
    # A path can be the key itself, by mistake: neither here nor in a cause.
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_an_authority_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    name = "KEYTURN_AMQP_CA_FILE"
    missing = f"{name} cannot be read (No such file or directory)"
    assert _refusal(tmp_path / "missing.pem") == missing
    assert _refusal(tmp_path) == f"{name} cannot be read (Is a directory)"
    (tmp_path / "text.pem").write_text(_NO_PEM)
    (tmp_path / "empty.pem").write_text("")
    key = Authority(tmp_path).issue().key
    for path in (tmp_path / "text.pem", tmp_path / "empty.pem", key):
        assert _refusal(path) == f"{name} holds no certificate in PEM"


def test_a_pair_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    good, other = authority.issue("good"), authority.issue("other")
    text = tmp_path / "text.pem"
    text.write_text(_NO_PEM)
    certificate, key = "KEYTURN_AMQP_CERT_FILE", "KEYTURN_AMQP_KEY_FILE"
    for pair, problem in (
        ((tmp_path / "no", good.key), f"{certificate} cannot be read (No such file or directory)"),
        ((good.certificate, tmp_path / "no"), f"{key} cannot be read (No such file or directory)"),
        ((text, good.key), f"{certificate} holds no certificate in PEM"),
        ((good.key, good.key), f"{certificate} holds no certificate in PEM"),
        ((good.certificate, text), f"{key} holds no private key in PEM"),
        ((good.certificate, good.certificate), f"{key} holds no private key in PEM"),
        (
            (good.certificate, other.key),
            f"{key} is not the key of the first certificate in {certificate}",
        ),
    ):
        assert _refusal(good.ca, *pair) == problem


@pytest.mark.parametrize("form", ["PKCS #8", "traditional"])
def test_an_encrypted_key_asks_nobody_for_a_password(tmp_path: Path, form: str) -> None:
    made = Authority(tmp_path).issue(password=b"canary-password")
    if form == "traditional":
        made.key.write_text(
            "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"
            "DEK-Info: AES-256-CBC,00112233445566778899AABBCCDDEEFF\n\n"
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n-----END EC PRIVATE KEY-----\n"
        )
    text = _refusal(made.ca, made.certificate, made.key)
    assert text == "KEYTURN_AMQP_KEY_FILE is encrypted: store the key without a password"


def test_a_key_in_place_of_its_path_is_not_shown(tmp_path: Path) -> None:
    made = Authority(tmp_path).issue()
    pasted = tmp_path / made.key.read_text()
    text = _refusal(made.ca, made.certificate, pasted)
    assert text.startswith("KEYTURN_AMQP_KEY_FILE cannot be read (")
    assert "PRIVATE" not in text


def test_a_port_of_tls_is_told_from_one_that_is_not(tmp_path: Path) -> None:
    context = server_context(Authority(tmp_path).issue("any", ("other.example",)))
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]
        assert not speaks_tls(f"http://127.0.0.1:{port}", 0.1)
        with tls_proxy(port, context) as secured:
            assert speaks_tls(f"http://127.0.0.1:{secured}")
    assert not speaks_tls("http://127.0.0.1:1")
    assert not speaks_tls("http://127.0.0.1:none")
