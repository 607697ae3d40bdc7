"""The configured stores of customer keys (SPEC 2.6, 11).

`KEYTURN_CUSTOMER_KEY_STORES` is JSON, or the path of a JSON file; it is read once. A request can
only choose among the stores, keys and projects that it names, so that no publisher can make a
process call any other address, or use the key of another customer.
"""

import re
from dataclasses import fields
from typing import Annotated, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from keyturn.identifiers import is_project
from keyturn.messages.fields import StrictModel
from keyturn.messages.json_text import problems
from keyturn_workers.core.key_uris import aws_region, begins_with_aws_region
from keyturn_workers.core.named_settings import parse_named_settings, text_of_setting
from keyturn_workers.core.vault_access import MasterKeyCredentials, VaultAccess

_ANY_END: Final = "*"
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_TRANSIT_KEY: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_CREDENTIALS: Final = {each.name for each in fields(VaultAccess)}
_MOUNT: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def _address(text: str) -> str:
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        raise ValueError("not a URL such as https://vault.example.com:8200") from None
    if "@" in url.netloc or "?" in text or "#" in text or url.path.strip("/"):
        raise ValueError("it must have no user, path, query or fragment")
    is_allowed = url.scheme == "https" or (url.scheme == "http" and url.hostname in _LOOPBACK)
    if not is_allowed or not url.hostname:
        raise ValueError("it must begin with https://; http:// is for a loopback address alone")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}" + ("" if port is None else f":{port}")


def _mount(text: str) -> str:
    mount = text.strip("/")
    if _MOUNT.fullmatch(mount) is None:
        raise ValueError("not the path of a transit engine")
    return mount


_Text = Annotated[str, Field(min_length=1)]
_Patterns = Annotated[list[str], Field(min_length=1)]


class _Store(StrictModel):
    """The common fields: `projects` and `keys` are literal, or end with `*`."""

    projects: _Patterns
    keys: _Patterns

    @field_validator("projects")
    @classmethod
    def _check_projects(cls, patterns: list[str]) -> list[str]:
        for number, pattern in enumerate(patterns, 1):
            text = pattern.removesuffix(_ANY_END)
            if not is_project(text) and pattern != _ANY_END:
                raise ValueError(f"entry {number} is not a project's id, or its beginning and *")
        return patterns

    def admits(self, project: str) -> bool:
        """Return True if the project may have keys of this store."""
        return _is_among(project, self.projects)

    def _allows(self, project: str, key: str) -> bool:
        return self.admits(project) and _is_among(key, self.keys)


class AwsKmsStore(_Store):
    """Keys of AWS KMS by their ARNs, in any account and Region that `keys` has.

    A pattern has a literal Region: a process keeps a client for each Region that it calls.
    """

    kind: Literal["awskms"]

    @field_validator("keys")
    @classmethod
    def _check_keys(cls, patterns: list[str]) -> list[str]:
        for number, pattern in enumerate(patterns, 1):
            text = pattern.removesuffix(_ANY_END)
            is_beginning = begins_with_aws_region(text) and ":alias/" not in text
            if aws_region(pattern) is None and (text == pattern or not is_beginning):
                raise ValueError(
                    f"entry {number} is not a key's ARN (arn:aws:kms:REGION:ACCOUNT:key/ID), or "
                    "its beginning with the whole Region (arn:aws:kms:REGION:) and *; an alias is "
                    "refused"
                )
        return patterns

    def gives(self, project: str, key: str) -> bool:
        """Return True if the project may have this key, which is the ARN of one."""
        return self._allows(project, key) and aws_region(key) is not None


class VaultStore(_Store):
    """Keys of one transit engine of HashiCorp Vault or OpenBao, by their names."""

    kind: Literal["vault"]
    address: Annotated[str, AfterValidator(_address)]
    mount: Annotated[str, AfterValidator(_mount)]
    token_file: _Text | None = None
    role_id: _Text | None = None
    secret_id_file: _Text | None = None
    kubernetes_role: _Text | None = None
    kubernetes_token_file: _Text | None = None
    auth_mount: _Text | None = None
    namespace: _Text | None = None
    ca_file: _Text | None = None

    @field_validator("keys")
    @classmethod
    def _check_keys(cls, patterns: list[str]) -> list[str]:
        for number, pattern in enumerate(patterns, 1):
            text = pattern.removesuffix(_ANY_END)
            if _TRANSIT_KEY.fullmatch(text) is None and pattern != _ANY_END:
                raise ValueError(f"entry {number} is not a transit key's name, or its beginning, *")
        return patterns

    @model_validator(mode="after")
    def _check_credentials(self) -> "VaultStore":
        ways = (self.token_file, self.role_id, self.kubernetes_role)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("it needs exactly one of token_file, role_id and kubernetes_role")
        if (self.role_id is None) != (self.secret_id_file is None):
            raise ValueError("role_id and secret_id_file must be set together")
        # No default: the token of the pod is also that of master keys and of the cluster.
        if (self.kubernetes_role is None) != (self.kubernetes_token_file is None):
            raise ValueError("kubernetes_role and kubernetes_token_file must be set together")
        return self

    def access(self, name: str, never_sent: MasterKeyCredentials) -> VaultAccess:
        """How to authenticate with the store of this name: by its own credentials alone."""
        return VaultAccess(
            setting=lambda field: f"{field} of {name} in KEYTURN_CUSTOMER_KEY_STORES",
            never_sent=never_sent,
            **self.model_dump(include=_CREDENTIALS),
        )

    def gives(self, project: str, key: str) -> bool:
        """Return True if the project may have this key, whose name is one segment of a path."""
        return self._allows(project, key) and _TRANSIT_KEY.fullmatch(key) is not None


CustomerKeyStore: TypeAlias = AwsKmsStore | VaultStore

_KINDS: Final[dict[str, type[AwsKmsStore] | type[VaultStore]]] = {
    "awskms": AwsKmsStore,
    "vault": VaultStore,
}


def parse_customer_key_stores(value: object) -> dict[str, CustomerKeyStore]:
    """Parse the setting: JSON, the path of a JSON file, or the parsed object.

    Raises:
        ValueError: names the store, the field and the rule that fails, without any value.
    """
    documents = parse_named_settings(text_of_setting(value))
    return {name: _store(name, document) for name, document in documents.items()}


def _store(name: str, document: object) -> CustomerKeyStore:
    if isinstance(document, AwsKmsStore | VaultStore):
        return document
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"store {name}: its kind must be awskms or vault")
    try:
        return _KINDS[kind].model_validate(document)
    except ValidationError as exc:
        # A rule about several fields has no field's name before it.
        raise ValueError(f"store {name}: {problems(exc).removeprefix(': ')}") from None


def _is_among(text: str, patterns: list[str]) -> bool:
    return any(
        text == pattern or (pattern.endswith(_ANY_END) and text.startswith(pattern[:-1]))
        for pattern in patterns
    )
