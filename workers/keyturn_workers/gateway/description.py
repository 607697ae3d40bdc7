"""The gateway's OpenAPI description, and the same as a static page at `/docs` (SPEC 9.6). Pure.

`openapi.json` is served as it is. The documentation pages of web frameworks load scripts from a
third party's CDN, on the origin that API keys are sent to. This page has no script, and loads
nothing.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any, Final

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;"
    "overflow-wrap:anywhere}"
    "code{font-family:ui-monospace,monospace;font-size:.9em}"
    "section{border-top:1px solid #8884;margin-top:2rem}"
    "table{border-collapse:collapse;width:100%}"
    "td,th{text-align:left;vertical-align:top;padding:.2rem 1rem .2rem 0;font-weight:normal}"
    "th{white-space:nowrap}"
    "td table{margin:.2rem 0 .6rem}"
    "pre{white-space:pre-wrap;padding:.5rem;border:1px solid #8884;border-radius:.3rem}"
    "h2 code:first-child{font-weight:bold}"
    ":root{color-scheme:light dark}"
)
_CODE: Final = re.compile("`([^`]+)`")
_PROBLEM: Final = "application/problem+json"
_LIMITS: Final = ("minimum", "maximum", "minItems", "maxItems", "pattern", "format", "default")
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
    operations = [
        (path, method, operation, item.get("parameters", []))
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method != "parameters"
    ]
    contents = "".join(
        f'<li><a href="#{escape(operation["operationId"])}">{_heading(path, method)}</a></li>'
        for path, method, operation, _ in operations
    )
    schemas = "".join(
        f'<section id="{escape(name)}"><h2>{escape(name)}</h2>'
        f"<p>{_prose(schema.get('description', ''))}</p>{_fields(schema)}"
        + "".join(map(_example, schema.get("examples", [])))
        + "</section>"
        for name, schema in document["components"]["schemas"].items()
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1><p>{escape(info['summary'])}</p>"
        "<p>Send the project's API key as <code>Authorization: Bearer …</code>. "
        'Errors have a <a href="#Problem">problem document</a>. '
        f'This page as <a href="/openapi.json">OpenAPI</a>.</p><ul>{contents}</ul>'
        f"{''.join(_operation(*each) for each in operations)}{schemas}</body></html>"
    ).encode()


def _operation(path: str, method: str, operation: dict[str, Any], shared: list[Any]) -> str:
    rows = "".join(_parameters([*shared, *operation.get("parameters", [])]))
    request = _content(operation.get("requestBody", {}))
    responses = "".join(
        f"<tr><th><code>{escape(status)}</code></th>"
        f"<td>{_prose(response['description'])}{_content(response)}</td></tr>"
        for status, response in operation["responses"].items()
    )
    return (
        f'<section id="{escape(operation["operationId"])}"><h2>{_heading(path, method)}</h2>'
        f"<p>{_prose(operation['summary'])}. {_prose(operation.get('description', ''))}</p>"
        + (f"<h3>Parameters</h3><table>{rows}</table>" if rows else "")
        + (f"<h3>Request body</h3>{request}" if request else "")
        + f"<h3>Responses</h3><table>{responses}</table></section>"
    )


def _heading(path: str, method: str) -> str:
    return f"<code>{escape(method.upper())}</code> <code>{escape(path)}</code>"


def _parameters(parameters: list[dict[str, Any]]) -> Iterator[str]:
    for parameter in parameters:
        name, place = escape(parameter["name"]), escape(parameter["in"])
        description = _prose(parameter.get("description", ""))
        yield f"<tr><th><code>{name}</code> ({place})</th><td>{description}</td></tr>"


def _content(body: dict[str, Any]) -> str:
    """Return the fields and the examples of a request's or a response's body."""
    return "".join(
        f"<p><code>{escape(media_type)}</code>: {_type(content['schema'])}</p>"
        + _fields(content["schema"])
        + "".join(
            f"<p>{_prose(example['summary'])}:</p>{_example(example['value'])}"
            for example in content.get("examples", {}).values()
        )
        for media_type, content in body.get("content", {}).items()
        if media_type != _PROBLEM
    )


def _fields(schema: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th><code>{escape(name)}</code>"
        f"{'' if name in schema.get('required', ()) else ' (optional)'}</th>"
        f"<td>{_type(field)}. {_prose(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    return f"<table>{rows}</table>" if rows else ""


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a value, with its limits, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "items" in schema:
        kind = f"array of {_type(schema['items'])}"
    elif values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        kind = " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    else:
        named = schema.get("type", "any bytes")
        kind = escape(named if isinstance(named, str) else " or ".join(named))
    limits = (
        f"{name} <code>{escape(json.dumps(schema[name]))}</code>"
        for name in _LIMITS
        if name in schema
    )
    return ", ".join([kind, *limits])


def _example(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    return f"<pre><code>{escape(text)}</code></pre>"


def _prose(text: str) -> str:
    """Return a description as HTML. Inline code is the only Markdown in our descriptions."""
    return _CODE.sub(r"<code>\1</code>", escape(text))
