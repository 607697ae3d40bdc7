"""Credentials of AWS by a web identity, as pods on EKS get them (IRSA), from a server of a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def use_web_identity(
    monkeypatch: pytest.MonkeyPatch, directory: Path, sts_url: str, ca: Path
) -> None:
    """Leave the chain of AWS nothing but a role by web identity, with STS at a URL."""
    token = directory / "web-identity-token"
    token.write_text("token")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    given = {
        "AWS_CONFIG_FILE": str(directory / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(directory / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token),
        "AWS_ROLE_ARN": "arn:aws:iam::000000000000:role/test",
        "AWS_ENDPOINT_URL_STS": sts_url,
        "AWS_CA_BUNDLE": str(ca),
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
