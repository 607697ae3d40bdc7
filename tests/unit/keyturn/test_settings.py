"""A publisher's settings: what is wrong is named in one line, and no value is shown (SPEC 11)."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import pytest
from pydantic import Field

from keyturn.crypto import IntakeKey, SigningKey
from keyturn.errors import SettingsError
from keyturn.settings import (
    DeploymentSettings,
    PublisherSettings,
    S3Settings,
    Settings,
    json_text,
    secrets_dir,
    seed_from_b64,
)

if TYPE_CHECKING:
    from pathlib import Path

SEED: Final = base64.b64encode(b"p" * 32).decode()
PUBLIC: Final = base64.b64encode(SigningKey.from_seed(b"e" * 32).public_bytes).decode()
INTAKE: Final = IntakeKey.from_seed(bytes(32))
ENVIRONMENT: Final = {
    "AMQP_URL": "amqps://kim:canary@broker/",
    "PUBLISHER_NAME": "billing",
    "PUBLISHER_KEY": SEED,
    "INTAKE_PUBLIC_KEY": f"main:{base64.b64encode(INTAKE.public_bytes).decode()}",
    "EVENT_PUBLIC_KEY": PUBLIC,
    "PEPPER": "canary",
}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A full environment, and an empty folder of secrets."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(f"KEYTURN_{name}", value)
    monkeypatch.setenv("KEYTURN_SECRETS_DIR", str(tmp_path))
    return tmp_path


def test_a_publisher_is_read_from_the_environment() -> None:
    settings = PublisherSettings.read()
    assert (settings.deployment, settings.publisher_name) == ("default", "billing")
    assert settings.publisher_key.id == SigningKey.from_seed(b"p" * 32).id
    assert settings.intake_public_key.id == "main"
    assert settings.intake_public_key.key.public_bytes == INTAKE.public_bytes
    assert [key.id for key in settings.event_public_key] == [SigningKey.from_seed(b"e" * 32).id]
    assert "canary" not in repr(settings)


def test_a_secret_may_be_a_file(monkeypatch: pytest.MonkeyPatch, secrets: Path) -> None:
    monkeypatch.delenv("KEYTURN_PUBLISHER_KEY")
    (secrets / "KEYTURN_PUBLISHER_KEY").write_text(SEED + "\n")
    assert PublisherSettings.read().publisher_key.id == SigningKey.from_seed(b"p" * 32).id


def test_every_setting_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEYTURN_AMQP_URL")
    monkeypatch.setenv("KEYTURN_PUBLISHER_NAME", "")
    with pytest.raises(SettingsError) as refused:
        PublisherSettings.read()
    assert str(refused.value) == (
        "KEYTURN_AMQP_URL is missing; KEYTURN_PUBLISHER_NAME is missing; `keyturn init` writes "
        "them to publisher.env, gateway.env or console.env: name the file with --env-file or "
        "KEYTURN_ENV_FILE"
    )


def test_settings_come_from_the_files_that_a_variable_names_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program of a publisher needs no code for it. Secrets may contain any character."""
    first, second = tmp_path / "first.env", tmp_path / "second.env"
    for name in ("DEPLOYMENT", "PEPPER"):
        monkeypatch.delenv(f"KEYTURN_{name}", raising=False)
    first.write_text("# a comment\nKEYTURN_PEPPER='a${HOME}b'\nKEYTURN_PUBLISHER_NAME=first\n")
    second.write_text("KEYTURN_PUBLISHER_NAME=second\nKEYTURN_DEPLOYMENT=second\n")
    monkeypatch.setenv("KEYTURN_ENV_FILE", f"{first}{os.pathsep}{second}")
    monkeypatch.delenv("KEYTURN_PUBLISHER_NAME")
    read = PublisherSettings.read()
    assert read.pepper.get_secret_value() == "a${HOME}b"
    assert (read.publisher_name, read.deployment) == ("first", "second")
    monkeypatch.setenv("KEYTURN_PUBLISHER_NAME", "environment")
    assert PublisherSettings.read().publisher_name == "environment"
    monkeypatch.setenv("KEYTURN_ENV_FILE", str(tmp_path / "missing.env"))
    with pytest.raises(SettingsError, match=r"missing\.env: No such file"):
        PublisherSettings.read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMQP_URL", "http://kim:canary@broker/"),
        ("DEPLOYMENT", "Canary Deployment"),
        ("PUBLISHER_NAME", "canary_name"),
        ("PUBLISHER_KEY", "canary"),
        ("PUBLISHER_KEY", base64.b64encode(b"canary" * 5).decode()),
        ("INTAKE_PUBLIC_KEY", "canary"),
        ("INTAKE_PUBLIC_KEY", "main:canary"),
        ("INTAKE_PUBLIC_KEY", f"main:{SEED}"),
        ("EVENT_PUBLIC_KEY", "canary"),
        ("EVENT_PUBLIC_KEY", f"{PUBLIC},"),
    ],
)
def test_a_malformed_setting_is_named_and_its_value_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"KEYTURN_{name}", value)
    with pytest.raises(SettingsError, match=f"KEYTURN_{name}") as refused:
        PublisherSettings.read()
    text = str(refused.value)
    assert "canary" not in text.lower()
    assert value not in text
    assert "\n" not in text
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "KEYTURN_S3_BUCKET is missing"),
        ({"BUCKET": "ab"}, "KEYTURN_S3_BUCKET is malformed"),
        ({"BUCKET": "abc", "ENDPOINT_URL": "s3://x"}, "KEYTURN_S3_ENDPOINT_URL is malformed"),
        ({"BUCKET": "abc", "ACCESS_KEY_ID": "x"}, "must be set together"),
        ({"BUCKET": "abc", "SECRET_ACCESS_KEY": "x"}, "must be set together"),
    ],
)
def test_a_bucket_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], reason: str
) -> None:
    for name in S3Settings.model_fields:
        monkeypatch.delenv(f"KEYTURN_{name.upper()}", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(f"KEYTURN_S3_{name}", value)
    with pytest.raises(SettingsError, match=reason):
        S3Settings.read()


class _Kinds(Settings):
    count: int = 1
    share: float = 1
    tracing: bool = False
    form: Literal["json", "console"] = "json"
    least: Annotated[int, Field(ge=1)] = 1


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("COUNT", "canary", "a whole number"),
        ("COUNT", "1.5", "a whole number"),
        ("SHARE", "canary", "a number"),
        ("TRACING", "canary", "true or false"),
        ("FORM", "canary", "'json' or 'console'"),
        ("LEAST", "0", "greater than or equal to 1"),
    ],
)
def test_a_setting_of_the_wrong_kind_says_what_it_must_be(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(f"KEYTURN_{name}", value)
    with pytest.raises(SettingsError) as refused:
        _Kinds.read()
    assert str(refused.value) == f"KEYTURN_{name} must be {reason}"


def test_a_folder_of_secrets_that_is_named_must_exist(
    monkeypatch: pytest.MonkeyPatch, secrets: Path
) -> None:
    assert secrets_dir() == secrets
    monkeypatch.setenv("KEYTURN_SECRETS_DIR", str(secrets / "none"))
    with pytest.raises(SettingsError, match="KEYTURN_SECRETS_DIR is not a folder"):
        secrets_dir()


@pytest.mark.parametrize("value", [None, 7, b"bytes", "", "x", SEED[:-2], SEED + SEED, "AAAA"])
def test_what_is_not_the_base64_of_32_bytes_is_no_seed(value: Any) -> None:
    assert seed_from_b64(f" {SEED}\n") == b"p" * 32
    with pytest.raises(ValueError, match=r"^not the base64 of 32 bytes$"):
        seed_from_b64(value)


def test_json_is_read_with_the_quotes_of_an_env_file() -> None:
    assert json_text(""" '{"a": "it's"}' """) == """{"a": "it's"}"""
    assert json_text("'[1]'") == "[1]"
    for text in ('{"a": 1}', "'", "''", "'name'", '"{}"', "/etc/publishers.json"):
        assert json_text(text) == text


def test_a_value_in_quotes_is_named_if_settings_are_malformed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEYTURN_PUBLISHER_KEY", f"'{SEED}'")
    monkeypatch.setenv("KEYTURN_EVENT_PUBLIC_KEY", f'"{PUBLIC}"')
    with pytest.raises(SettingsError, match="KEYTURN_PUBLISHER_KEY is malformed") as refused:
        PublisherSettings.read()
    assert str(refused.value).endswith(
        "; KEYTURN_PUBLISHER_KEY, KEYTURN_EVENT_PUBLIC_KEY are in quotes, "
        "which `docker run --env-file` does not remove"
    )
    assert SEED not in str(refused.value)


def test_quotes_that_belong_to_a_secret_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYTURN_PEPPER", "'quoted'")
    assert PublisherSettings.read().pepper.get_secret_value() == "'quoted'"


@pytest.mark.parametrize("prefix", ["AMQP", "S3"])
def test_a_certificate_and_its_key_are_set_together(
    monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    monkeypatch.setenv("KEYTURN_S3_BUCKET", "bucket")
    cls = PublisherSettings if prefix == "AMQP" else S3Settings
    for part in ("CERT", "KEY"):
        with monkeypatch.context() as patch:
            patch.setenv(f"KEYTURN_{prefix}_{part}_FILE", "/nowhere")
            with pytest.raises(SettingsError) as refused:
                cls.read()
        assert str(refused.value) == (
            f"KEYTURN_{prefix}_CERT_FILE and KEYTURN_{prefix}_KEY_FILE must be set together"
        )


def test_files_of_tls_need_an_address_with_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who names an authority means TLS: nothing may be sent without it."""
    monkeypatch.setenv("KEYTURN_S3_BUCKET", "bucket")
    monkeypatch.setenv("KEYTURN_AMQP_URL", "amqp://kim:canary@broker/")
    monkeypatch.setenv("KEYTURN_AMQP_CA_FILE", "/nowhere")
    with pytest.raises(SettingsError) as refused:
        PublisherSettings.read()
    assert str(refused.value) == (
        "KEYTURN_AMQP_CA_FILE is for TLS: KEYTURN_AMQP_URL must then begin with amqps://"
    )
    monkeypatch.setenv("KEYTURN_S3_ENDPOINT_URL", "http://storage")
    monkeypatch.setenv("KEYTURN_S3_CA_FILE", "/nowhere")
    with pytest.raises(SettingsError) as refused:
        S3Settings.read()
    assert str(refused.value) == (
        "KEYTURN_S3_CA_FILE is for TLS: KEYTURN_S3_ENDPOINT_URL must then begin with https://"
    )


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("no_verify_ssl=1", "certificates are always verified"),
        ("cafile=/ca.pem", "set KEYTURN_AMQP_CA_FILE"),
        ("heartbeat=5&keyfile=/k.pem", "set KEYTURN_AMQP_KEY_FILE"),
    ],
)
def test_the_address_does_not_say_how_it_is_verified(
    monkeypatch: pytest.MonkeyPatch, option: str, instead: str
) -> None:
    monkeypatch.setenv("KEYTURN_AMQP_URL", f"amqps://kim:canary@broker/?{option}")
    with pytest.raises(SettingsError) as refused:
        PublisherSettings.read()
    name = option.rpartition("&")[2].partition("=")[0]
    assert str(refused.value) == f"KEYTURN_AMQP_URL must not contain {name}: {instead}"


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "/vhost",
        "kim:canary@",
        "kim:can/ary@broker/",
        "kim:can#ary@broker/",
        "[::1/",
        "broker:canary/",
        "broker:99999/",
        "broker:5672:5672/",
        "a..b/",
        "a" * 64 + "/",
    ],
)
@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_a_brokers_address_has_a_host_name_and_a_port(
    monkeypatch: pytest.MonkeyPatch, scheme: str, rest: str
) -> None:
    """Otherwise the client library's own errors came at the first use, and a start was repeated."""
    monkeypatch.setenv("KEYTURN_AMQP_URL", f"{scheme}://{rest}")
    with pytest.raises(SettingsError, match="KEYTURN_AMQP_URL is malformed: it has no") as refused:
        DeploymentSettings.read()
    assert "canary" not in str(refused.value)
    for valid in (
        "broker",
        "kim:pass@[::1]:5672/",
        "broker.:0/a%2Fb?heartbeat=5",
        "k:%2F@my_broker",
    ):
        monkeypatch.setenv("KEYTURN_AMQP_URL", f"{scheme}://{valid}")
        assert DeploymentSettings.read().amqp_url.get_secret_value() == f"{scheme}://{valid}"


@pytest.mark.parametrize(
    "url",
    [
        "http://" + "a" * 64 + ".example",
        "http://a..b",
        "http://",
        "http://[::1",
        "http:///b",
        "http://h:x",
    ],
)
def test_an_address_without_a_valid_host_name_is_malformed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYTURN_S3_BUCKET", "bucket")
    monkeypatch.setenv("KEYTURN_S3_ENDPOINT_URL", url)
    with pytest.raises(SettingsError) as error:
        S3Settings.read()
    assert str(error.value) == (
        "KEYTURN_S3_ENDPOINT_URL is malformed: it has no valid host name or port"
    )
    for valid in ("http://[::1]:9000", "https://s3.example.com./", f"http://{'a' * 63}.example"):
        monkeypatch.setenv("KEYTURN_S3_ENDPOINT_URL", valid)
        assert S3Settings.read().s3_endpoint_url == valid
