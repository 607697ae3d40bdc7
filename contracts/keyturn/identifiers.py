"""Identifiers (SPEC 1): projects, object keys, ids, times, and the S3 keys of records.

Every check is exact: a valid name is safe in an S3 key, in the context of a seal and in a log line.
An object key is relative to its project; an S3 key is relative to the bucket.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeAlias

PROJECT_PATTERN: Final = r"^[a-z0-9][a-z0-9-]{0,62}$"
SHORT_NAME_PATTERN: Final = r"^[a-z0-9-]{1,32}$"  # master keys, publishers, deployments
UUID_PATTERN: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
TIME_PATTERN: Final = r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{0,6})?Z$"
OBJECT_KEY_MAX_BYTES: Final = 900

OWN_PREFIX: Final = ".keyturn/"
KEYRINGS_PREFIX: Final = ".keyturn/keyrings/"
STAGING_PREFIX: Final = ".keyturn/staging/"
SWEEPS_PREFIX: Final = ".keyturn/sweeps/"
KEYS_PREFIX: Final = ".keyturn/keys/"
EVIDENCE_PREFIX: Final = ".keyturn/evidence/"
SOURCES_PREFIX: Final = ".keyturn/sources/"
ALL_PROJECTS: Final = "*"
ALL_PROJECTS_FOLDER: Final = "_all"  # in URLs; no project id begins with _

_PROJECT = re.compile(PROJECT_PATTERN[1:-1])
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SHORT_NAME = re.compile(SHORT_NAME_PATTERN[1:-1])
_UUID = re.compile(UUID_PATTERN[1:-1])
_EVIDENCE_NAME = re.compile(rf"([1-9][0-9]{{0,17}})-({UUID_PATTERN[1:-1]})\.json")
_TIME = re.compile(TIME_PATTERN[1:-1], re.ASCII)


def is_project(text: str) -> bool:
    """Return whether this is a project id (SPEC 1)."""
    return _PROJECT.fullmatch(text) is not None


def is_short_name(text: str) -> bool:
    """Return whether this can name a master key, an intake key, a publisher or a deployment."""
    return _SHORT_NAME.fullmatch(text) is not None


def is_uuid(text: str) -> bool:
    """Return whether this is a request's id: a UUID in lower case."""
    return _UUID.fullmatch(text) is not None


def check_object_key(object_key: str) -> str:
    """Return the object key if SPEC 1 allows it.

    Raises:
        ValueError: names the rule that it breaks, without repeating the key.
    """
    try:
        size_bytes = len(object_key.encode())
    except UnicodeEncodeError as exc:
        raise ValueError("a key must be valid UTF-8") from exc
    if not 1 <= size_bytes <= OBJECT_KEY_MAX_BYTES:
        raise ValueError(f"a key has 1 to {OBJECT_KEY_MAX_BYTES} bytes of UTF-8")
    if has_control_characters(object_key):
        raise ValueError("a key has no control characters")
    if any(segment in ("", ".", "..") for segment in object_key.split("/")):
        raise ValueError("a key has no empty, '.' or '..' segment, and no '/' at either end")
    return object_key


def is_object_key(object_key: str) -> bool:
    """Return whether SPEC 1 allows this object key."""
    try:
        check_object_key(object_key)
    except ValueError:
        return False
    return True


def has_control_characters(text: str) -> bool:
    """Return whether the text contains a C0 or C1 control character or DEL."""
    return _CONTROL_CHARACTER.search(text) is not None


Order: TypeAlias = Callable[[str], list[str]]
"""An order of keys, as a function that returns a key's sort key: `byte_order` or `path_order`."""


def byte_order(key: str) -> list[str]:
    """Sort by UTF-8 bytes, as S3 does: `a-b` before `a/x`.

    This is the order of code points, in which Python compares strings.
    """
    return [key]


def path_order(key: str) -> list[str]:
    """Sort by one folder after the other, as a file system does: `a/x` before `a-b`."""
    return key.split("/")


def parse_time(text: str) -> datetime:
    """Parse a time of SPEC 1.

    Raises:
        ValueError: another form, or not a valid time.
    """
    if _TIME.fullmatch(text) is None:
        raise ValueError("a time must look like 2026-11-24T10:00:00.000000Z")
    return datetime.fromisoformat(text)


def format_time(instant: datetime) -> str:
    """Return an instant in the form of SPEC 1, to the microsecond."""
    # Not strftime: it writes the year 999 with three digits.
    return instant.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def object_s3_key(project: str, object_key: str) -> str:
    """Return the S3 key of an object (SPEC 4.1)."""
    return f"{project}/{object_key}"


def keyring_s3_key(project: str) -> str:
    """Return the S3 key of a project's keyring (SPEC 5.2)."""
    return f"{KEYRINGS_PREFIX}{project}.json"


def key_check_s3_key(master_key: str) -> str:
    """Return the S3 key of the known text that checks a master key's id (SPEC 2.2)."""
    return f"{KEYS_PREFIX}{master_key}.json"


def staging_s3_key(publisher: str, upload_id: str) -> str:
    """Return the S3 key of a staged body: one above the inline limit (SPEC 6.4)."""
    return f"{STAGING_PREFIX}{publisher}/{upload_id}"


def source_s3_key(name: str) -> str:
    """Return the S3 key of the ingest workers' record of a source (SPEC 17.4)."""
    return f"{SOURCES_PREFIX}{name}.json"


def evidence_prefix(project: str) -> str:
    """Return the S3 prefix of the evidence of a project (SPEC 15.1)."""
    return f"{EVIDENCE_PREFIX}{project}/"


def evidence_s3_key(project: str, generation: int, round_id: str) -> str:
    """Return the S3 key of the evidence that a round left at this generation (SPEC 15.1)."""
    return f"{evidence_prefix(project)}{generation}-{round_id}.json"


def parse_evidence_name(name: str) -> tuple[int, str] | None:
    """Return the generation and the round id in a name like `3-{round id}.json`, else None."""
    match = _EVIDENCE_NAME.fullmatch(name)
    return None if match is None else (int(match[1]), match[2])


MARK_LIMIT: Final = 2**48
"""Serials and generations of marks are below this, far below a keyring's limits (SPEC 5.5)."""
