"""API keys as callers pass them: as text, or as a secret that no log shows. Pure."""

from pydantic import SecretStr

ApiKey = str | SecretStr


def secret_text(secret: ApiKey) -> str:
    """Return the text of an API key or a pepper."""
    return secret.get_secret_value() if isinstance(secret, SecretStr) else secret
