"""Arguments and settings are checked before a command does anything (SPEC 1, 11, 14)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import typer

from keyturn.errors import SettingsError
from keyturn_workers.cli.arguments import (
    parse_duration_s,
    parse_moment,
    validate_gateway_url,
    validate_object_key,
    validate_project,
    validate_reason,
)
from keyturn_workers.cli.settings import (
    ApiKeySettings,
    BrokerSettings,
    EvidenceSettings,
    GatewayUrlSettings,
    ProjectKekSettings,
    ReaderSettings,
    ResignSettings,
    StorageKeySettings,
)


@pytest.mark.parametrize("project", ["acme", "0-a", "a" * 63])
def test_a_project_id_of_the_specification_is_taken(project: str) -> None:
    assert validate_project(project) == project


def test_an_optional_project_may_be_left_out() -> None:
    assert validate_project(None) is None


@pytest.mark.parametrize("project", ["", "Acme", "a/b", "*", "-a", "a" * 64, "acme\n"])
def test_any_other_project_id_is_wrong_usage(project: str) -> None:
    with pytest.raises(typer.BadParameter, match="malformed_request: a project id has 1 to 63"):
        validate_project(project)


def test_a_gateways_url_may_be_left_out_and_is_not_repeated() -> None:
    assert validate_gateway_url(None) is None
    assert validate_gateway_url("https://files.example.com") == "https://files.example.com"
    with pytest.raises(typer.BadParameter, match="must be http://host") as refused:
        validate_gateway_url("https://user:sesame@files.example.com")
    assert "sesame" not in str(refused.value)


def test_an_object_key_of_the_specification_is_taken() -> None:
    assert validate_object_key("2026/ü k.txt") == "2026/ü k.txt"


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "a/../b", "a\nb", "k" * 901])
def test_any_other_object_key_is_wrong_usage(key: str) -> None:
    with pytest.raises(typer.BadParameter, match="malformed_request: a key ") as refused:
        validate_object_key(key)
    assert not key.strip() or key not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "reason"), [(None, None), (" why ", "why"), ("ü" * 500, "ü" * 500)]
)
def test_a_reason_is_one_line(text: str | None, reason: str | None) -> None:
    assert validate_reason(text) == reason


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "\x1b[2J", "x" * 501])
def test_anything_else_is_no_reason(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="one line of 1 to 500 characters"):
        validate_reason(text)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-24", datetime(2026, 11, 24, tzinfo=UTC)),
        ("2026-11-24T10:00:00Z", datetime(2026, 11, 24, 10, tzinfo=UTC)),
        ("2026-11-24T10:00:00.5Z", datetime(2026, 11, 24, 10, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_a_time_or_a_day(text: str, moment: datetime) -> None:
    assert parse_moment(text) == moment


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", timedelta(seconds=90)),
        ("5m", timedelta(minutes=5)),
        ("1h", timedelta(hours=1)),
        ("7d", timedelta(days=7)),
    ],
)
def test_how_long_ago(text: str, ago: timedelta) -> None:
    before = datetime.now(UTC)
    assert before - ago <= parse_moment(text) <= datetime.now(UTC) - ago


@pytest.mark.parametrize(
    "text", ["", "h", "-1h", "1 h", "1w", "2026-13-01", "2026-11-24T10:00", "now", "9999999h"]
)
def test_anything_else_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="how long ago"):
        parse_moment(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("12h", 43_200), ("7d", 604_800), ("0", 0)],
)
def test_a_duration_is_seconds_or_has_a_unit(text: str, seconds: int) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "1.5h", "1w", "1h30m", "1 h", "9" * 10, "\u0661"])
def test_another_text_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="must be seconds"):
        parse_duration_s(text)


def test_what_a_command_can_work_without_may_be_missing() -> None:
    assert ApiKeySettings.read().api_key is None
    assert ReaderSettings.read().pepper.get_secret_value() == ""
    assert GatewayUrlSettings.read().gateway_url is None
    assert BrokerSettings.read().amqp_url is None
    assert StorageKeySettings.read().s3_region == "us-east-1"
    assert EvidenceSettings.read().event_public_key == ()
    assert ProjectKekSettings.read().project_kek is None


def test_the_new_api_key_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current one may be set for downloads, and must not become the new one by mistake."""
    monkeypatch.setenv("KEYTURN_API_KEY", "kt_current")
    settings = ApiKeySettings.read()
    assert settings.new_api_key is None
    assert "kt_current" not in repr(settings)


@pytest.mark.parametrize(
    "url", ["files.example.com", "ftp://files.example.com", "http://u:sesame@h", "http://h/?sesame"]
)
def test_a_url_of_no_gateway_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("KEYTURN_GATEWAY_URL", url)
    with pytest.raises(SettingsError, match="KEYTURN_GATEWAY_URL is malformed") as refused:
        GatewayUrlSettings.read()
    assert "sesame" not in str(refused.value)
    monkeypatch.setenv("KEYTURN_GATEWAY_URL", "https://files.example.com/keyturn")
    assert GatewayUrlSettings.read().gateway_url == "https://files.example.com/keyturn"


def test_to_sign_again_everything_about_publishers_is_needed() -> None:
    with pytest.raises(SettingsError) as refused:
        ResignSettings.read()
    for name in ("AMQP_URL", "PUBLISHER_NAME", "PUBLISHER_KEY", "PUBLISHERS"):
        assert f"KEYTURN_{name} is missing" in str(refused.value)
