"""The gateway's OpenAPI description, and the same as a static page at `/docs` (SPEC 9.6). Pure.

`openapi.json` is served as it is. The documentation pages of web frameworks load scripts from a
third party's CDN, on the origin that API keys are sent to. This page has no script, and loads
nothing.
"""

import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any, Final

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem}"
    "code{font-family:ui-monospace,monospace;font-size:.9em}"
    "section{border-top:1px solid #8884;margin-top:2rem}"
    "table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem 1rem .2rem 0;font-weight:normal}"
    "th{white-space:nowrap}"
    "h2 code:first-child{font-weight:bold}"
    ":root{color-scheme:light dark}"
)
_CODE: Final = re.compile("`([^`]+)`")
DOCS_HEADERS: Final = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": "default-src 'none'; style-src 'sha256-"
    + b64encode(sha256(_STYLE.encode()).digest()).decode()
    + "'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def openapi_json() -> bytes:
    """Return the OpenAPI description of the gateway."""
    return files(__package__).joinpath("openapi.json").read_bytes()


def docs_page(document: dict[str, Any]) -> bytes:
    """Return an OpenAPI description as HTML."""
    info = document["info"]
    title = escape(f"{info['title']} {info['version']}")
    body = "".join(
        _operation(path, method, operation, item.get("parameters", []))
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1><p>{escape(info['summary'])}</p>"
        "<p>Send the project's API key as <code>Authorization: Bearer …</code>. "
        'This page as <a href="/openapi.json">OpenAPI</a>.</p>'
        f"{body}</body></html>"
    ).encode()


def _operation(path: str, method: str, operation: dict[str, Any], shared: list[Any]) -> str:
    rows = "".join(_parameters([*shared, *operation.get("parameters", [])]))
    responses = "".join(
        f"<tr><th><code>{escape(status)}</code></th><td>{_prose(response['description'])}</td></tr>"
        for status, response in operation["responses"].items()
    )
    return (
        f"<section><h2><code>{escape(method.upper())}</code> <code>{escape(path)}</code></h2>"
        f"<p>{_prose(operation['summary'])}. {_prose(operation.get('description', ''))}</p>"
        + (f"<h3>Parameters</h3><table>{rows}</table>" if rows else "")
        + f"<h3>Responses</h3><table>{responses}</table></section>"
    )


def _parameters(parameters: list[dict[str, Any]]) -> Iterator[str]:
    for parameter in parameters:
        name, place = escape(parameter["name"]), escape(parameter["in"])
        description = _prose(parameter.get("description", ""))
        yield f"<tr><th><code>{name}</code> ({place})</th><td>{description}</td></tr>"


def _prose(text: str) -> str:
    """Return a description as HTML. Inline code is the only Markdown in our descriptions."""
    return _CODE.sub(r"<code>\1</code>", escape(text))
