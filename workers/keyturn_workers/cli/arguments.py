"""Arguments and options that several commands share (SPEC 1, 14)."""

from pathlib import Path
from typing import Annotated

import typer

from keyturn.gateway.transport import is_gateway_url
from keyturn.identifiers import check_object_key, has_control_characters, is_project
from keyturn.messages import REASON_MAX_CHARACTERS
from keyturn_workers.cli.settings import GATEWAY_URL_FORM


def validate_project(value: str | None) -> str | None:
    """A project id that SPEC 1 allows, or None.

    Raises:
        typer.BadParameter: it is not allowed.
    """
    if value is not None and not is_project(value):
        raise typer.BadParameter(
            "malformed_request: a project id has 1 to 63 characters from a-z, 0-9 and -"
        )
    return value


def validate_object_key(value: str) -> str:
    """An object key that SPEC 1 allows.

    Raises:
        typer.BadParameter: it is not allowed.
    """
    try:
        return check_object_key(value)
    except ValueError as exc:
        raise typer.BadParameter(f"malformed_request: {exc}") from exc


def validate_reason(value: str | None) -> str | None:
    """A reason as the audit trail holds it: one line, or None.

    Raises:
        typer.BadParameter: it is empty, too long, or has control characters.
    """
    if value is None:
        return None
    reason = value.strip()
    if not 1 <= len(reason) <= REASON_MAX_CHARACTERS or has_control_characters(reason):
        raise typer.BadParameter(f"must be one line of 1 to {REASON_MAX_CHARACTERS} characters")
    return reason


def validate_gateway_url(value: str | None) -> str | None:
    """A URL that can be a gateway's, or None.

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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(help="File with the project's API key. Default: KEYTURN_API_KEY, then a prompt."),
]
GatewayUrl = Annotated[
    str | None,
    typer.Option(
        "--gateway",
        metavar="URL",
        callback=validate_gateway_url,
        help="Use this gateway; only the API key is needed. Default: KEYTURN_GATEWAY_URL.",
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
