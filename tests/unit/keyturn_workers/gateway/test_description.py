"""`openapi.json` says what the gateway does, and the page at `/docs` shows only that (SPEC 9.6)."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from importlib.metadata import version
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator
from starlette.applications import Starlette
from starlette.routing import Route

from keyturn.errors import all_errors
from keyturn.identifiers import PROJECT_PATTERN, UUID_PATTERN
from keyturn.messages import COUNT_FIELDS
from keyturn_workers.gateway.app import LimitsMiddleware
from keyturn_workers.gateway.deletes import DeletesBody
from keyturn_workers.gateway.description import DOCS_HEADERS, docs_page, openapi_json
from keyturn_workers.gateway.links import CIPHERTEXT_MAX_S, LinkBody
from keyturn_workers.gateway.listing import MAX_ENTRIES
from keyturn_workers.gateway.problems import MEDIA_TYPE, status_for_code
from keyturn_workers.gateway.request import DOWNLOAD_NAME_MAX_BYTES
from keyturn_workers.gateway.rotations import RotationBody
from tests.unit.keyturn_workers.gateway.serving import Serving

DOCUMENT: Final[dict[str, Any]] = json.loads(openapi_json())
_OPERATIONS: Final[list[tuple[str, str, dict[str, Any]]]] = [
    (path, method, operation)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
]
_SCHEMAS: Final = DOCUMENT["components"]["schemas"]
_UNDESCRIBED: Final = {"/", "/openapi.json", "/docs"}


def _values(node: Any, name: str) -> list[Any]:
    """Return all values of a member, at any depth."""
    if isinstance(node, list):
        return [value for each in node for value in _values(each, name)]
    if not isinstance(node, dict):
        return []
    own = [node[name]] if name in node else []
    return own + [value for each in node.values() for value in _values(each, name)]


def test_it_describes_the_routes_and_their_methods() -> None:
    app = Serving().app
    assert isinstance(app, LimitsMiddleware)
    starlette = app._app
    assert isinstance(starlette, Starlette)
    routes = {
        (re.sub(r":\w+}", "}", route.path), method.lower())
        for route in starlette.routes
        if isinstance(route, Route) and route.path not in _UNDESCRIBED
        for method in route.methods or ()
        # Starlette answers HEAD wherever it answers GET.
        if method != "HEAD" or route.name == "objects"
    }
    assert {(path, method) for path, method, _ in _OPERATIONS} == routes


def test_every_problem_names_the_error_codes_of_its_status() -> None:
    codes: dict[str, list[str]] = {}
    for code in sorted(all_errors()):
        codes.setdefault(str(status_for_code(code)), []).append(code)
    problems = [
        (status, response)
        for _, _, operation in _OPERATIONS
        for status, response in operation["responses"].items()
        if MEDIA_TYPE in response.get("content", {})
    ]
    for status, response in problems:
        assert response["content"] == {
            MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}
        }
        named = f" ({', '.join(codes[status])})" if status in codes else ""
        assert response["description"].partition(" (")[0] + named == response["description"]
    assert {status for status, _ in problems} >= codes.keys()
    assert _SCHEMAS["Problem"]["properties"]["code"]["enum"] == sorted(all_errors())


def test_its_limits_and_forms_are_those_of_the_code() -> None:
    assert DOCUMENT["info"]["version"] == version("keyturn")
    assert _SCHEMAS["Counts"]["required"] == [*COUNT_FIELDS, "clean"]
    assert _SCHEMAS["Counts"]["properties"].keys() == {*COUNT_FIELDS, "clean"}
    for name in ("objects", "prefixes"):
        assert _SCHEMAS["Listing"]["properties"][name]["maxItems"] == MAX_ENTRIES
    patterns = set(_values(DOCUMENT, "pattern"))
    assert {PROJECT_PATTERN, UUID_PATTERN} <= patterns
    text = json.dumps(DOCUMENT)
    assert f"of at most {DOWNLOAD_NAME_MAX_BYTES} bytes of UTF-8" in text
    assert f"valid for at most {CIPHERTEXT_MAX_S}," in text


def test_its_request_bodies_have_the_fields_of_the_models() -> None:
    bodies = (("createLink", LinkBody), ("rotate", RotationBody), ("deleteMany", DeletesBody))
    for operation_id, model in bodies:
        (operation,) = (each for _, _, each in _OPERATIONS if each["operationId"] == operation_id)
        body = operation["requestBody"]["content"]["application/json"]
        assert body["schema"]["properties"].keys() == model.model_fields.keys()
        assert body["schema"]["additionalProperties"] is False
        for example in body["examples"].values():
            model.model_validate_json(json.dumps(example["value"]))
    expires = LinkBody.model_json_schema()["properties"]["expires_s"]
    (own,) = (each for each in _values(DOCUMENT, "expires_s") if isinstance(each, dict))
    assert {name: own[name] for name in ("minimum", "maximum", "default")} == {
        name: expires[name] for name in ("minimum", "maximum", "default")
    }


def test_every_operation_has_an_id_of_its_own_and_every_reference_resolves() -> None:
    ids = [operation["operationId"] for _, _, operation in _OPERATIONS]
    assert len(ids) == len(set(ids))
    for reference in _values(DOCUMENT, "$ref"):
        assert reference.removeprefix("#/components/schemas/") in _SCHEMAS


_WITH_BODIES: Final = [each for each in _OPERATIONS if each[1] in ("post", "put")]


@pytest.mark.parametrize(
    ("path", "method", "operation"),
    _WITH_BODIES,
    ids=[each["operationId"] for *_, each in _WITH_BODIES],
)
def test_every_post_and_put_shows_an_example_of_each_body(
    path: str, method: str, operation: dict[str, Any]
) -> None:
    bodies = [
        operation["requestBody"],
        *(each for status, each in operation["responses"].items() if status.startswith("2")),
    ]
    assert len(bodies) > 1, (path, method)
    assert all(content["examples"] for body in bodies for content in body["content"].values())


def test_every_example_is_valid_under_its_schema() -> None:
    contents = [each for node in _values(DOCUMENT["paths"], "content") for each in node.values()]
    examples = [
        (content["schema"], example["value"])
        for content in contents
        for example in content.get("examples", {}).values()
    ]
    examples += [(each, value) for each in _SCHEMAS.values() for value in each.get("examples", ())]
    assert examples
    for schema, value in examples:
        rooted = {**schema, "components": DOCUMENT["components"]}
        Draft202012Validator(rooted, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(
            value
        )


_EVIL: Final = "<script>alert(1)</script>&"


def _described(text: str) -> dict[str, Any]:
    """A description in which every text is this one."""
    parameter = {"name": text, "in": text, "description": text}
    schema = {"type": text, "pattern": text, "description": text}
    fields = {"description": text, "properties": {text: schema}, "examples": [text]}
    content = {"schema": fields, "examples": {text: {"summary": text, "value": {text: text}}}}
    operation = {
        "operationId": text,
        "summary": text,
        "description": text,
        "parameters": [parameter],
        "requestBody": {"content": {text: content}},
        "responses": {text: {"description": text, "content": {text: content}}},
    }
    return {
        "info": {"title": text, "version": text, "summary": text},
        "paths": {text: {"parameters": [parameter], "get": operation}},
        "components": {"schemas": {text: fields}},
    }


def test_every_text_of_the_description_is_escaped() -> None:
    page = docs_page(_described(_EVIL)).decode()
    assert "<script" not in page
    fields = 4
    body = 1 + fields + 3
    # The title twice, its version with it, the summary; the table of contents; the operation with
    # both parameters and both bodies; then the schema.
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&amp;") == (
        5 + 2 + 4 + 2 * 3 + body + 2 + body + 3 + fields + 1
    )


def test_code_in_a_text_is_shown_as_code() -> None:
    assert "`" not in docs_page(DOCUMENT).decode()
    page = docs_page(_described("with `a<b`")).decode()
    assert "<td>with <code>a&lt;b</code></td>" in page


def test_parameters_of_a_path_are_shown_at_each_of_its_operations() -> None:
    described = _described("x")
    described["paths"]["x"]["put"] = {"operationId": "y", "summary": "put", "responses": {}}
    described["paths"]["x"]["parameters"] = [{"name": "shared", "in": "path"}]
    page = docs_page(described).decode()
    assert page.count("<code>shared</code> (path)") == 2
    assert page.count("<section") == 3


def test_bodies_are_shown_with_their_fields_limits_and_examples() -> None:
    page = docs_page(DOCUMENT).decode()
    link = page.partition('<section id="createLink">')[2].partition("</section>")[0]
    request = link.partition("<h3>Request body</h3>")[2].partition("<h3>Responses</h3>")[0]
    assert (
        "<th><code>expires_s</code> (optional)</th>"
        "<td>integer, minimum <code>1</code>, maximum <code>604800</code>, default "
        "<code>3600</code>." in request
    )
    assert "&quot;max_bytes&quot;: 1048576" in request
    assert '<a href="#CiphertextLink">CiphertextLink</a> or <a href="#Link">Link</a>' in link
    deletes = page.partition('<section id="deleteMany">')[2].partition("</section>")[0]
    assert 'array of <a href="#RejectedKey">RejectedKey</a>' in deletes


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: set[str] = set()
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets |= {value or "" for name, value in attrs if name in ("src", "href")}
        self.ids |= {value or "" for name, value in attrs if name == "id"}


def test_the_page_loads_nothing_and_runs_nothing_but_its_own_style() -> None:
    """It is on the origin to which API keys are sent."""
    page = docs_page(DOCUMENT).decode()
    loads = _Loads()
    loads.feed(page)
    assert {each for each in loads.targets if not each.startswith("#")} == {"/openapi.json"}
    assert {each[1:] for each in loads.targets if each.startswith("#")} <= loads.ids
    assert not loads.tags & {"script", "link", "img", "iframe", "object"}
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = DOCS_HEADERS["content-security-policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    for path in DOCUMENT["paths"]:
        assert path in page
