"""The configured sources: their buckets, and where their objects go (SPEC 11, 17.1).

`KEYTURN_SOURCES` is JSON, or the path of a JSON file; it is read once. A source maps each of its
S3 keys to a project and an object key by two templates. The mapping is pure: a request for a
source's object can store it only at that one place.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from keyturn.identifiers import OWN_PREFIX, has_control_characters, is_object_key, is_project
from keyturn.messages.fields import StrictModel
from keyturn.messages.json_text import problems
from keyturn.settings import S3Settings, Url
from keyturn_workers.core.named_settings import parse_named_settings, text_of_setting

_VARIABLES: Final = re.compile(r"\{(name|first|rest)\}")
_BRACES: Final = re.compile(r"[{}]")
_SECRET_MAX_BYTES: Final = 4096
_NO_SEGMENTS: Final = frozenset({"", ".", ".."})


@dataclass(frozen=True, slots=True)
class Target:
    """The destination of a source's object: a project, and its key there."""

    project: str
    object_key: str


def _template(text: str) -> str:
    if _BRACES.search(_VARIABLES.sub("", text)):
        raise ValueError("only {name}, {first} and {rest} are allowed in braces")
    return text


def _key_template(text: str) -> str:
    if _VARIABLES.search(text.replace("{first}", "")) is None:
        raise ValueError("it needs {name} or {rest}: otherwise many objects would have one key")
    return _template(text)


def _delete(value: object) -> object:
    if not (isinstance(value, bool) or value == "unconditional"):
        raise ValueError('it must be true, false or "unconditional"')
    return value


def _prefix(text: str) -> str:
    if has_control_characters(text):
        raise ValueError("it must not have control characters")
    return text


class Source(StrictModel):
    """A bucket, or the objects under one prefix of it.

    `project` and `key` are the templates of the project and the object key. In both, `{name}` is
    the S3 key after the prefix, `{first}` its first segment and `{rest}` the text after the first
    `/`. With `delete`, an object is deleted from the source after it was stored and its event
    confirmed; `unconditional`: even if the storage cannot restrict the delete to the body that was
    read. With `watch`, ingest workers look for new objects by themselves. Unset fields of the
    server (`endpoint_url`, `region`, credentials) are those of Keyturn's own bucket; the two parts
    of the credentials are set together, as text or as files that are read once.
    """

    bucket: Annotated[str, Field(min_length=3)]
    prefix: Annotated[str, AfterValidator(_prefix)] = ""
    project: Annotated[str, AfterValidator(_template)]
    key: Annotated[str, AfterValidator(_key_template)]
    delete: Annotated[bool | Literal["unconditional"], BeforeValidator(_delete)] = False
    watch: bool = True
    endpoint_url: Url | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    access_key_id_file: str | None = None
    secret_access_key_file: str | None = None

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        named = [
            (self.access_key_id, self.access_key_id_file),
            (self.secret_access_key, self.secret_access_key_file),
        ]
        counts = [sum(value is not None for value in pair) for pair in named]
        if counts not in ([0, 0], [1, 1]):
            raise ValueError(
                "access_key_id and secret_access_key must be set together, each once: "
                "directly or with _file"
            )
        return self

    def target(self, s3_key: str) -> Target | None:
        """The target of the object at this S3 key; None if it has none.

        It has none if the key is not under the prefix, or is under `.keyturn/` there; if a segment
        after the prefix is empty, `.` or `..`, by which some storages find another object; or if
        the templates give no project id or object key that SPEC 1 allows.
        """
        name = s3_key.removeprefix(self.prefix)
        if not s3_key.startswith(self.prefix) or name.startswith(OWN_PREFIX):
            return None
        if not _NO_SEGMENTS.isdisjoint(name.split("/")):
            return None
        first, _, rest = name.partition("/")
        values = {"name": name, "first": first, "rest": rest}
        # Only the template is searched for names: a key may contain braces, too.
        project, object_key = (
            _VARIABLES.sub(lambda variable: values[variable[1]], template)
            for template in (self.project, self.key)
        )
        if not (is_project(project) and is_object_key(object_key)):
            return None
        return Target(project, object_key)

    def is_bucket_of(self, settings: S3Settings) -> bool:
        """Compare with the configured bucket, by the names in the settings alone."""
        endpoints = [self.endpoint_url or settings.s3_endpoint_url, settings.s3_endpoint_url]
        first, second = ((url or "").rstrip("/").lower() for url in endpoints)
        return self.bucket == settings.s3_bucket and first == second

    def storage_settings(self, own: S3Settings) -> S3Settings:
        """The settings to open the source's bucket, with defaults from Keyturn's own bucket.

        Keyturn's client certificate is only for its own server; its CAs verify every server.

        Raises:
            ValueError: a credentials file cannot be read.
        """
        changes: dict[str, object] = {"s3_bucket": self.bucket}
        if self.endpoint_url is not None:
            changes |= {"s3_endpoint_url": self.endpoint_url}
            changes |= {"s3_cert_file": None, "s3_key_file": None}
            if self.endpoint_url.startswith("http://"):
                changes["s3_ca_file"] = None
        if self.region is not None:
            changes["s3_region"] = self.region
        access_key_id = self.access_key_id or _credential(self.access_key_id_file)
        if access_key_id is not None:
            secret = self.secret_access_key or SecretStr(
                _credential(self.secret_access_key_file) or ""
            )
            changes |= {"s3_access_key_id": access_key_id, "s3_secret_access_key": secret}
        return own.model_copy(update=changes)


def _credential(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        with Path(path).open("rb") as file:
            text = file.read(_SECRET_MAX_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"a credentials file cannot be read ({_reason(exc)})") from None
    if not text:
        raise ValueError("a credentials file is empty")
    return text


def _reason(exc: OSError | UnicodeDecodeError) -> str | None:
    return exc.strerror if isinstance(exc, OSError) else "not UTF-8 text"


def parse_sources(value: object) -> dict[str, Source]:
    """Parse the setting: JSON, the path of a JSON file, or the parsed object.

    Raises:
        ValueError: names the source, the field and the rule that fails, without any value.
    """
    documents = parse_named_settings(text_of_setting(value))
    return {name: _source(name, fields) for name, fields in documents.items()}


def _source(name: str, fields: object) -> Source:
    if isinstance(fields, Source):
        return fields
    try:
        return Source.model_validate(fields)
    except ValidationError as exc:
        raise ValueError(f"source {name}: {problems(exc)}") from None
