"""Arguments and options that several commands share; typed times (SPEC 1, 14)."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from keyturn.errors import MalformedRequestError
from keyturn.gateway.transport import is_gateway_url
from keyturn.identifiers import (
    check_object_key,
    has_control_characters,
    is_project,
    is_short_name,
    parse_time,
)
from keyturn.messages.fields import REASON_MAX_CHARACTERS
from keyturn.publisher.requests import parse_customer_key
from keyturn_workers.cli.output import AS_JSON_HELP
from keyturn_workers.cli.settings import GATEWAY_URL_FORM

_AGO: Final = re.compile(r"(\d{1,6})(s|m|h|d)", re.ASCII)
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DURATION: Final = re.compile(r"(\d{1,9})([smhd]?)", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
MOMENT_FORM: Final = "a time (2026-11-24T10:00:00Z), a day (2026-11-24), or how long ago (90m, 7d)"
DURATION_FORM: Final = "seconds (90), or with a unit (90s, 15m, 12h, 7d)"


def validate_project(value: str | None) -> str | None:
    """Return a project id, or None.

    Raises:
        typer.BadParameter: SPEC 1 does not allow it.
    """
    if value is not None and not is_project(value):
        raise typer.BadParameter(
            "malformed_request: a project id has 1 to 63 characters from a-z, 0-9 and -"
        )
    return value


def validate_object_key(value: str) -> str:
    """Return an object key.

    Raises:
        typer.BadParameter: SPEC 1 does not allow it.
    """
    try:
        return check_object_key(value)
    except ValueError as exc:
        raise typer.BadParameter(f"malformed_request: {exc}") from exc


def validate_short_name(value: str | None) -> str | None:
    """Return a key id or the name of a publisher or a deployment, or None.

    Raises:
        typer.BadParameter: SPEC 1 does not allow it.
    """
    if value is not None and not is_short_name(value):
        raise typer.BadParameter("must have 1 to 32 characters from a-z, 0-9 and -")
    return value


def validate_reason(value: str | None) -> str | None:
    """Return a one-line reason for the audit trail, or None.

    Raises:
        typer.BadParameter: it is empty, too long, or has control characters.
    """
    if value is None:
        return None
    reason = value.strip()
    if not 1 <= len(reason) <= REASON_MAX_CHARACTERS or has_control_characters(reason):
        raise typer.BadParameter(f"must be one line of 1 to {REASON_MAX_CHARACTERS} characters")
    return reason


def validate_customer_key(value: str | None) -> str | None:
    """Return a customer key as `STORE/KEY`, or None.

    Raises:
        typer.BadParameter: it has another form.
    """
    if value is not None:
        try:
            parse_customer_key(value)
        except MalformedRequestError as exc:
            raise typer.BadParameter(
                "malformed_request: must be STORE/KEY: a store's name of 1 to 32 characters from "
                "a-z, 0-9 and -, and the name or ARN of its key"
            ) from exc
    return value


def validate_gateway_url(value: str | None) -> str | None:
    """Return a URL that can be a gateway's, or None.

    Raises:
        typer.BadParameter: it cannot be one; the message does not repeat it.
    """
    if value is not None and not is_gateway_url(value):
        raise typer.BadParameter(GATEWAY_URL_FORM)
    return value


Project = Annotated[str, typer.Argument(help="The project id.", callback=validate_project)]
OptionalProject = Annotated[
    str | None, typer.Argument(help="The project id.", callback=validate_project)
]
ObjectKey = Annotated[
    str, typer.Argument(help="The object key, without the project.", callback=validate_object_key)
]
Reason = Annotated[
    str | None,
    typer.Option(
        help="Reason to record in the audit trail, such as a ticket number. "
        "Do not include secrets.",
        callback=validate_reason,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help=AS_JSON_HELP)]
AsJsonText = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(help="File with the project's API key. Default: KEYTURN_API_KEY, then a prompt."),
]
CustomerKey = Annotated[
    str | None,
    typer.Option(
        metavar="STORE/KEY",
        callback=validate_customer_key,
        help="Make every object need this customer key: the name of a store in "
        "KEYTURN_CUSTOMER_KEY_STORES, and of a key there.",
    ),
]
CustomerSecretFile = Annotated[
    Path | None,
    typer.Option(
        help="File with customer secrets, for a project with a customer key: the base64 of 32 "
        "bytes on each line, as the customer's KMS decrypts them."
    ),
]
GatewayUrl = Annotated[
    str | None,
    typer.Option(
        "--gateway",
        metavar="URL",
        callback=validate_gateway_url,
        help="The URL of the gateway. Default: KEYTURN_GATEWAY_URL.",
    ),
]
NewApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        help="File with the new API key. Default: KEYTURN_NEW_API_KEY, then a prompt.",
    ),
]
GenerateApiKey = Annotated[
    bool, typer.Option("--generate", help="Generate a new API key, and save or print it first.")
]
SaveTo = Annotated[
    Path | None,
    typer.Option(help="New file (mode 0600) for the generated API key, instead of printing it."),
]
TimeoutS = Annotated[float, typer.Option(min=0.1, help="Maximum time to wait, in seconds.")]


def parse_moment(text: str) -> datetime:
    """Return the moment in `text`, in UTC.

    Raises:
        typer.BadParameter: it has another form.
    """
    if match := _AGO.fullmatch(text):
        return datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
    try:
        return parse_time(f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text)
    except ValueError:
        raise typer.BadParameter(f"must be {MOMENT_FORM}") from None


def parse_duration_s(text: str) -> int:
    """Return the seconds in `text`.

    Raises:
        typer.BadParameter: it has another form.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"must be {DURATION_FORM}")
    unit = _UNITS[match[2] or "s"]
    return int(timedelta(**{unit: int(match[1])}).total_seconds())
