"""Settings of single commands: what is optional, and what is checked (SPEC 11)."""

from __future__ import annotations

import pytest

from keyturn.errors import SettingsError
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
