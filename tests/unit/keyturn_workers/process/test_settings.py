"""Settings: what is missing or malformed is named in one line, and no secret is shown."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from keyturn.crypto import Secret, SigningKey
from keyturn.errors import SettingsError
from keyturn.settings import PublisherSettings, S3Settings, Settings
from keyturn_workers.console.settings import ConsoleSettings
from keyturn_workers.core.key_uris import (
    AwsKmsUri,
    Pkcs11Uri,
    VaultUri,
    aws_region,
    begins_with_aws_region,
    is_key_uri,
    parse_key_uri,
)
from keyturn_workers.process.grants_file import GrantsFile
from keyturn_workers.process.settings import (
    GatewaySettings,
    LogSettings,
    OperatorSettings,
    WorkerSettings,
)
from tools.harness.deployment import Deployment
from tools.servers import S3Server

_DOCS = (Path(__file__).parents[4] / "docs" / "reference" / "settings.md").read_text()
_S3 = S3Server("http://127.0.0.1:1", "access", "s3-secret-canary", "us-east-1", "given")
_DEPLOYMENT = Deployment("amqp://kim:amqp-secret-canary@127.0.0.1/", _S3, "bucket")
_CANARY = base64.b64encode(b"canary" * 5).decode()
ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def _set(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "cls",
    [
        PublisherSettings,
        S3Settings,
        OperatorSettings,
        WorkerSettings,
        GatewaySettings,
        ConsoleSettings,
    ],
)
def test_every_setting_is_in_the_documentation(cls: type[Settings]) -> None:
    missing = [name for name in cls.model_fields if f"`KEYTURN_{name.upper()}`" not in _DOCS]
    assert missing == []


@pytest.mark.parametrize(
    "cls", [PublisherSettings, S3Settings, WorkerSettings, GatewaySettings, ConsoleSettings]
)
def test_the_documentation_has_the_defaults(cls: type[Settings]) -> None:
    """Of each number, and of each word that is no secret."""
    documented: dict[str, set[str]] = {}
    for names, defaults in re.findall(r"^\| (`KEYTURN_[^|]*) \| ([^|]*) \|", _DOCS, re.MULTILINE):
        for name in re.findall(r"KEYTURN_(\w+)", names):
            values = re.sub(r"\(.*\)|`", "", defaults).split(", ")
            documented.setdefault(name, set()).update(value.strip() for value in values)
    for name, setting in cls.model_fields.items():
        if isinstance(setting.default, int | float | str):
            default = str(setting.default)
            default = default.lower() if isinstance(setting.default, bool) else default
            assert default in documented[name.upper()], name


def test_a_full_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, _DEPLOYMENT.worker_env(LEASE_S="7"))
    settings = WorkerSettings.read()
    assert settings.lease_s == 7
    assert settings.master_keys["m1"] == Secret(_DEPLOYMENT.master_key)
    assert settings.publishers["narrow"].allows("upload.requested", "other")
    assert not settings.publishers["narrow"].allows("upload.requested", "acme")
    assert not settings.publishers["narrow"].allows("enroll.requested", "other")
    assert LogSettings.read().log_format == "json"


def test_defaults_are_those_of_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, _DEPLOYMENT.worker_env())
    settings = WorkerSettings.read()
    assert settings.encryption_enabled
    assert not settings.allow_unsafe_storage
    assert (settings.lease_s, settings.keyring_cache_s, settings.upload_concurrency) == (15, 2, 64)
    assert settings.part_size_bytes == 8 * 1024**2
    assert settings.copy_limit_bytes == 5 * 1024**3
    assert settings.request_max_age_s == 7 * 24 * 3600
    assert settings.health_port == 0


def test_readers_may_hold_several_public_event_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the deployment changes its event key (SPEC 6.10)."""
    keys = [SigningKey.from_seed(seed * 32) for seed in (b"o", b"n")]
    old, new = (base64.b64encode(key.public_bytes).decode() for key in keys)
    _set(monkeypatch, _DEPLOYMENT.publisher_env())
    for value, ids in (
        (old, [keys[0].id]),
        (f"{new},{old}", [keys[1].id, keys[0].id]),
        (f" {new} , {old},{new}", [keys[1].id, keys[0].id]),
    ):
        monkeypatch.setenv("KEYTURN_EVENT_PUBLIC_KEY", value)
        assert [key.id for key in PublisherSettings.read().event_public_key] == ids
    for malformed in (f"{old},", f"{old};{new}", ",", f"{old},{_CANARY}"):
        monkeypatch.setenv("KEYTURN_EVENT_PUBLIC_KEY", malformed)
        with pytest.raises(SettingsError, match="KEYTURN_EVENT_PUBLIC_KEY is malformed") as refused:
            PublisherSettings.read()
        assert _CANARY not in str(refused.value)


def test_publishers_may_be_the_path_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Read again when it changes; a malformed one stops the start (SPEC 6.10)."""
    env, file = _DEPLOYMENT.worker_env(), tmp_path / "publishers.json"
    file.write_text(env["KEYTURN_PUBLISHERS"])
    _set(monkeypatch, env | {"KEYTURN_PUBLISHERS": str(file)})
    publishers = WorkerSettings.read().publishers
    assert isinstance(publishers, GrantsFile)
    assert set(publishers) == {"api", "narrow", "gateway"}
    file.write_text("{}}")
    with pytest.raises(SettingsError, match="KEYTURN_PUBLISHERS is malformed"):
        WorkerSettings.read()


def test_several_event_keys_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first signs (SPEC 6.10)."""
    env = _DEPLOYMENT.worker_env()
    old = base64.b64encode(b"o" * 32).decode()
    _set(monkeypatch, env | {"KEYTURN_EVENT_KEY": f"{env['KEYTURN_EVENT_KEY']}, {old}"})
    keys = WorkerSettings.read().event_key
    assert [key.id for key in keys] == [
        _DEPLOYMENT.event_key.id,
        SigningKey.from_seed(b"o" * 32).id,
    ]


def test_files_in_a_secrets_folder_serve_as_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    env = _DEPLOYMENT.worker_env()
    (tmp_path / "KEYTURN_MASTER_KEYS").write_text(env.pop("KEYTURN_MASTER_KEYS") + "\n")
    (tmp_path / "KEYTURN_AMQP_URL").write_text(env.pop("KEYTURN_AMQP_URL") + "\n")
    _set(monkeypatch, env | {"KEYTURN_SECRETS_DIR": str(tmp_path)})
    settings = WorkerSettings.read()
    assert settings.master_keys["m1"] == Secret(_DEPLOYMENT.master_key)
    assert settings.amqp_url.get_secret_value() == _DEPLOYMENT.amqp_url


def test_a_secrets_folder_that_is_named_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, _DEPLOYMENT.worker_env() | {"KEYTURN_SECRETS_DIR": "/nowhere/at/all"})
    with pytest.raises(SettingsError, match="KEYTURN_SECRETS_DIR"):
        WorkerSettings.read()


@pytest.mark.parametrize(
    "name",
    ["AMQP_URL", "S3_BUCKET", "MASTER_KEYS", "ACTIVE_MASTER_KEY", "INTAKE_KEYS", "PUBLISHERS"],
)
def test_a_missing_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    env = _DEPLOYMENT.worker_env()
    del env[f"KEYTURN_{name}"]
    _set(monkeypatch, env)
    with pytest.raises(SettingsError) as raised:
        WorkerSettings.read()
    problem, _, hint = str(raised.value).partition("; ")
    assert problem == f"KEYTURN_{name} is missing"
    assert hint.startswith("`keyturn init` writes it to keyturn.env")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMQP_URL", "http://kim:amqp-secret-canary@host"),
        ("MASTER_KEYS", "{canary"),
        ("MASTER_KEYS", json.dumps({"m1": _CANARY})),
        ("MASTER_KEYS", json.dumps({"M1": _CANARY})),
        ("MASTER_KEYS", json.dumps([_CANARY])),
        ("ACTIVE_MASTER_KEY", "canary-2"),
        ("INTAKE_KEYS", json.dumps({"main": _CANARY})),
        ("EVENT_KEY", _CANARY),
        ("PUBLISHERS", json.dumps({"api": {"keys": [_CANARY], "may": ["*"], "projects": ["*"]}})),
        ("PUBLISHERS", json.dumps({"api": {"keys": [], "may": ["canary"], "projects": []}})),
        ("PUBLISHERS", json.dumps({"api": {"keys": [], "may": [], "projects": [], "x": 1}})),
        ("PUBLISHERS", json.dumps({"api": {"keys": "canary", "may": [], "projects": []}})),
        ("CUSTOMER_KEY_STORES", "{canary"),
        ("CUSTOMER_KEY_STORES", "/canary/stores.json"),
        ("CUSTOMER_KEY_STORES", json.dumps({"kms": {"kind": "canary"}})),
        ("CUSTOMER_KEY_CACHE_S", "9.9"),
        ("CUSTOMER_KEY_CACHE_S", "3601"),
        ("LEASE_S", "canary"),
        ("LEASE_S", "2"),
        ("ENCRYPTION_ENABLED", "canary"),
        ("PART_SIZE_BYTES", "1024"),
        ("S3_SECRET_ACCESS_KEY", ""),
    ],
)
def test_a_malformed_setting_is_named_in_one_line_without_its_value(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    _set(monkeypatch, _DEPLOYMENT.worker_env() | {f"KEYTURN_{name}": value})
    with pytest.raises(SettingsError) as raised:
        WorkerSettings.read()
    text = str(raised.value)
    assert name in text
    assert "\n" not in text
    assert not value or value not in text
    assert "canary" not in text
    assert raised.value.__cause__ is None


def test_a_gateway_deletes_unless_it_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, _DEPLOYMENT.gateway_env())
    assert GatewaySettings.read().gateway_delete == "allowed"
    monkeypatch.setenv("KEYTURN_GATEWAY_DELETE", "forbidden")
    assert GatewaySettings.read().gateway_delete == "forbidden"
    monkeypatch.setenv("KEYTURN_GATEWAY_DELETE", "no")
    with pytest.raises(SettingsError, match="KEYTURN_GATEWAY_DELETE"):
        GatewaySettings.read()


def test_origins_are_read_as_browsers_send_them(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, _DEPLOYMENT.gateway_env())
    assert GatewaySettings.read().gateway_cors_origins == ()
    for origins in (
        [],
        ["*"],
        ["https://app.example.com", "http://localhost:5173", "http://[::1]:8000"],
        ["https://a.example:80", "capacitor://localhost", "https://xn--bcher-kva.example"],
    ):
        monkeypatch.setenv("KEYTURN_GATEWAY_CORS_ORIGINS", json.dumps(origins))
        assert GatewaySettings.read().gateway_cors_origins == tuple(origins)


@pytest.mark.parametrize(
    "value",
    [
        "https://app.example.com",
        "{}",
        "[1]",
        "null",
        '["https://app.example.com/"]',
        '["https://app.example.com/path"]',
        '["https://App.example.com"]',
        '["HTTPS://app.example.com"]',
        '["https://app.example.com:443"]',
        '["http://app.example.com:80"]',
        '["https://kim@app.example.com"]',
        '["https://*.example.com"]',
        '["https://bücher.example"]',
        '["app.example.com"]',
        '["null"]',
        '[""]',
        '["https://"]',
        '["https://a.example\\n"]',
        '["*", "https://app.example.com"]',
    ],
)
def test_other_forms_of_origins_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Such an entry would match no request, and the page would only say that CORS failed."""
    _set(monkeypatch, _DEPLOYMENT.gateway_env(GATEWAY_CORS_ORIGINS=value))
    with pytest.raises(SettingsError, match="KEYTURN_GATEWAY_CORS_ORIGINS is malformed") as refused:
        GatewaySettings.read()
    assert "\n" not in str(refused.value)
    assert "example" not in str(refused.value).removesuffix('such as ["https://app.example.com"]')


def test_gateways_rotate_keys_unless_that_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC 9.5. A word that is neither stops the gateway: it must not count as allowed."""
    _set(monkeypatch, _DEPLOYMENT.gateway_env())
    assert GatewaySettings.read().gateway_rotation == "allowed"
    monkeypatch.setenv("KEYTURN_GATEWAY_ROTATION", "forbidden")
    assert GatewaySettings.read().gateway_rotation == "forbidden"
    for malformed in ("Forbidden", "no", "false"):
        monkeypatch.setenv("KEYTURN_GATEWAY_ROTATION", malformed)
        with pytest.raises(SettingsError, match="KEYTURN_GATEWAY_ROTATION"):
            GatewaySettings.read()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://files.example.com", "https://files.example.com"),
        ("https://files.example.com/", "https://files.example.com"),
        ("HTTPS://Files.Example.com:443/", "https://files.example.com"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080/a/b//", "http://[::1]:8080/a/b"),
        ("https://files.example.com/key%20turn", "https://files.example.com/key%20turn"),
    ],
)
def test_links_begin_with_the_public_url(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: str
) -> None:
    """SPEC 9.3. A path comes after it, so it does not end with a slash."""
    _set(monkeypatch, _DEPLOYMENT.gateway_env())
    assert GatewaySettings.read().gateway_public_url is None
    monkeypatch.setenv("KEYTURN_GATEWAY_PUBLIC_URL", value)
    assert GatewaySettings.read().gateway_public_url == expected


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("files.example.com", "not an http:// or https:// URL"),
        ("ftp://files.example.com", "not an http:// or https:// URL"),
        ("https://", "not an http:// or https:// URL"),
        ("https://a:65536", "not an http:// or https:// URL"),
        ("https://a b", "not an http:// or https:// URL"),
        ("https://url-canary@files.example.com", "no user name and no password"),
        ("https://kim:url-canary@files.example.com", "no user name and no password"),
        ("https://files.example.com/?url-canary", "no query and no fragment"),
        ("https://files.example.com?", "no query and no fragment"),
        ("https://files.example.com/#url-canary", "no query and no fragment"),
    ],
)
def test_a_malformed_public_url_stops_the_gateway(
    monkeypatch: pytest.MonkeyPatch, value: str, why: str
) -> None:
    _set(monkeypatch, _DEPLOYMENT.gateway_env(GATEWAY_PUBLIC_URL=value))
    with pytest.raises(SettingsError) as raised:
        GatewaySettings.read()
    text = str(raised.value)
    assert text.startswith("KEYTURN_GATEWAY_PUBLIC_URL is malformed: ")
    assert why in text
    assert "\n" not in text
    assert "canary" not in text


def test_no_secret_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, _DEPLOYMENT.worker_env() | _DEPLOYMENT.publisher_env())
    shown = repr(WorkerSettings.read()) + repr(PublisherSettings.read())
    for secret in (
        base64.b64encode(_DEPLOYMENT.master_key).decode(),
        base64.b64encode(_DEPLOYMENT.event_seed).decode(),
        base64.b64encode(_DEPLOYMENT.intake_seed).decode(),
        base64.b64encode(_DEPLOYMENT.publisher_seed).decode(),
        repr(_DEPLOYMENT.master_key),
        "secret-canary",
    ):
        assert secret not in shown


@pytest.mark.parametrize(
    ("cls", "name"), [(GatewaySettings, "GATEWAY_TLS"), (ConsoleSettings, "CONSOLE_TLS")]
)
def test_a_listeners_certificate_and_key_are_set_together(
    monkeypatch: pytest.MonkeyPatch, cls: type[Settings], name: str
) -> None:
    env = _DEPLOYMENT.gateway_env() | {
        "KEYTURN_CONSOLE_SESSION_KEY": base64.b64encode(b"s" * 32).decode(),
        "KEYTURN_CONSOLE_PASSWORD_FILE": "/nowhere",
    }
    _set(monkeypatch, env)
    for part in ("CERT", "KEY"):
        with monkeypatch.context() as patch:
            patch.setenv(f"KEYTURN_{name}_{part}", "/nowhere")
            with pytest.raises(SettingsError) as refused:
                cls.read()
        problem = f"KEYTURN_{name}_CERT and KEYTURN_{name}_KEY must be set together"
        assert str(refused.value) == problem


def test_a_pkcs11_uri_names_token_object_module_and_the_file_with_the_pin() -> None:
    uri = parse_key_uri(
        "pkcs11:token=My%20HSM;object=master-m2;id=%01%ff;type=secret-key"
        "?module-path=/usr/lib/p11.so&pin-source=file:/run/secrets/pin%20file"
    )
    assert isinstance(uri, Pkcs11Uri)
    assert (uri.token, uri.object, uri.id) == ("My HSM", "master-m2", b"\x01\xff")
    assert (uri.module_path, uri.pin_source) == ("/usr/lib/p11.so", "/run/secrets/pin file")


def test_a_pin_in_a_uri_is_used_and_never_shown() -> None:
    uri = parse_key_uri("pkcs11:object=m2?pin-value=4711&module-path=/p11.so")
    assert isinstance(uri, Pkcs11Uri)
    assert uri.pin == Secret(b"4711")
    assert uri.location == "pkcs11:object=m2?module-path=/p11.so"
    assert "4711" not in repr(uri)


def test_an_awskms_uri_is_an_arn_with_its_region() -> None:
    assert parse_key_uri(f"awskms:{ARN}") == AwsKmsUri(f"awskms:{ARN}", ARN, "eu-central-1")


@pytest.mark.parametrize(
    ("region", "is_one"),
    [
        ("eu-central-1", True),
        ("us-gov-west-1", True),
        ("us-isob-east-1", True),
        ("eusc-de-east-1", True),
        ("x", True),
        ("x" * 63, True),
        ("", False),
        ("x" * 64, False),
        ("-eu", False),
        ("eu-", False),
        ("1", False),
        ("EU-central-1", False),
        ("eu.central", False),
        ("eu_central", False),
        ("eu/..", False),
        ("eu@x", False),
        ("eu central", False),
        ("eu\n", False),
        ("eu-*", False),
        ("eu-c\u00e9ntral-1", False),
        ("eu-central-\u0661", False),
    ],
)
def test_a_region_is_one_label_of_a_hosts_name(region: str, is_one: bool) -> None:
    arn = ARN.replace("eu-central-1", region)
    assert aws_region(arn) == (region if is_one else None)
    assert begins_with_aws_region(arn) is is_one


def test_a_vault_uri_names_address_mount_key_and_version() -> None:
    text = "vault:https://vault.example.com:8200/team/transit/keyturn-m2?version=3"
    assert parse_key_uri(text) == VaultUri(
        text, "https://vault.example.com:8200", "team/transit", "keyturn-m2", 3
    )


def test_a_vault_address_may_be_ipv6() -> None:
    uri = parse_key_uri("vault:http://[::1]:8200/transit/m2?version=1")
    assert isinstance(uri, VaultUri)
    assert uri.address == "http://[::1]:8200"


@pytest.mark.parametrize(
    "text",
    [
        "pkcs11:token=keyturn",  # no key
        "pkcs11:object=m2;object=m3",
        "pkcs11:object=m2;color=red",
        "pkcs11:object=m2;type=private",
        "pkcs11:object=%ff",
        "pkcs11:object=m2;slot-id=x",
        "awskms:arn:aws:kms:eu-central-1:111122223333:alias/m2",
        "awskms:alias/m2",
        "vault:https://vault.example.com/transit/m2",  # no version
        "vault:https://vault.example.com/transit/m2?version=0",
        "vault:https://vault.example.com/transit/m2?version=latest",
        "vault:https://vault.example.com/transit/m2?version=1&version=2",
        "vault:https://vault.example.com/m2?version=1",  # no mount
        "vault:https://user:canary@vault.example.com/transit/m2?version=1",
        "vault:https://:canary@vault.example.com/transit/m2?version=1",
        "vault:ftp://vault.example.com/transit/m2?version=1",
        "vault:https://vault.example.com/../m2/x y?version=1",
        "vault:https://vault.example.com:port/transit/m2?version=1",
        "gcpkms:projects/p",
    ],
)
def test_a_uri_that_does_not_pin_one_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"URI|master key") as caught:
        parse_key_uri(text)
    assert "canary" not in str(caught.value)


def test_base64_is_no_uri() -> None:
    assert not is_key_uri("q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=")
    assert is_key_uri(f"awskms:{ARN}")
