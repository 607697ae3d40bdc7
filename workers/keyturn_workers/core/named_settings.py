"""Settings that are JSON objects with short names as their keys (SPEC 11). Pure."""

from pathlib import Path
from typing import Any

from keyturn.errors import MalformedRequestError
from keyturn.identifiers import is_short_name
from keyturn.messages.json_text import load_json
from keyturn.settings import json_text


def text_of_setting(value: object) -> object:
    """Return a setting that is JSON, or the content of the file that it names.

    Raises:
        ValueError: the file cannot be read; the text does not repeat its path.
    """
    if not isinstance(value, str) or json_text(value).lstrip().startswith("{"):
        return value
    try:
        return Path(value.strip()).read_text(encoding="utf-8")
    except OSError as exc:
        raise ValueError(f"the file cannot be read ({exc.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError("the file cannot be read (not UTF-8 text)") from None


def parse_named_settings(value: object) -> dict[str, Any]:
    """Parse a setting that is a JSON object with short names as its keys.

    Raises:
        ValueError: anything else; the text does not repeat the value.
    """
    try:
        document = load_json(json_text(value).encode()) if isinstance(value, str) else value
    except MalformedRequestError as exc:
        raise ValueError(exc.detail.removeprefix("the body is ")) from None
    except UnicodeEncodeError:
        raise ValueError("not a JSON object") from None
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004  # pydantic wants ValueError
    for name in document:
        if not is_short_name(name):
            raise ValueError("its names have 1 to 32 characters of a-z, 0-9 and -")
    return document
