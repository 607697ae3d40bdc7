"""The OpenAPI 3.1 description of the gateway, served at `/openapi.json` (SPEC 9). Pure.

A file of the repository holds the same (`docs/openapi.json`), and a test compares them.
"""

from importlib.metadata import version
from typing import Any, Final

from keyturn.errors import all_errors
from keyturn.identifiers import PROJECT_PATTERN, UUID_PATTERN
from keyturn.messages import COUNT_FIELDS
from keyturn_workers.gateway.link_parameters import DOWNLOAD_NAME_MAX_BYTES
from keyturn_workers.gateway.link_routes import CIPHERTEXT_MAX_S, LINK_DEFAULT_S, LINK_MAX_S
from keyturn_workers.gateway.listing_query import MAX_ENTRIES
from keyturn_workers.gateway.problems import MEDIA_TYPE, status_for_code

_Json = dict[str, Any]
_PROBLEM: Final = {"$ref": "#/components/schemas/Problem"}
_DESCRIPTIONS: Final = {
    400: "The request is malformed",
    401: "No API key was sent, it is not the project's current one, no such project, or a link "
    "that is not valid",
    403: "Forbidden at this gateway, or not in its grant",
    404: "There is no such object, rotation or path",
    405: "The path does not support this method",
    408: "The request's body was sent too slowly",
    409: "The request conflicts with what exists",
    412: "The object does not meet the conditions",
    413: "The body or the object is too large",
    416: "The range lies outside the object",
    429: "The project uses its share of the gateway, or has too many requests without an outcome: "
    "try again later",
    500: "Internal error",
    502: "What is stored cannot be opened: it was changed, or is not Keyturn's",
    503: "Try again later: storage or broker unavailable, the broker at an alarm, or too many "
    "requests",
}
_READ: Final = (400, 401, 404, 409, 412, 413, 429, 500, 502, 503)
_WRITE: Final = (400, 401, 403, 404, 408, 409, 413, 429, 500, 502, 503)
_DELETE: Final = (400, 401, 403, 404, 409, 429, 500, 502, 503)
_API_KEY_OR_LINK: Final[list[_Json]] = [{"apiKey": []}, {"link": []}]
_STORED_METADATA: Final = {
    "type": "object",
    "additionalProperties": {"type": "string"},
    "description": "The object's `enc-` metadata, as stored. With the API key, it opens the bytes",
}
_TAG: Final = {"schema": {"type": "string", "pattern": '^"[^"]*"$'}}


def document() -> _Json:
    """Return the whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Keyturn gateway",
            "version": version("keyturn"),
            "summary": "Read, list, upload, delete and rotate with a project's current API key. "
            "Objects are decrypted while they stream.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"apiKey": []}],
        "paths": {
            "/v1/projects/{project}/objects/{key}": {
                "parameters": [_project(), _key()],
                "get": _get(),
                "head": _head(),
                "put": _put(),
                "delete": _delete(),
            },
            "/v1/projects/{project}/objects/{key}/links": {
                "parameters": [_project(), _key()],
                "post": _post_link(),
            },
            "/v1/projects/{project}/objects": {
                "parameters": [_project()],
                "get": _list(),
            },
            "/v1/projects/{project}/rotations": {
                "parameters": [_project()],
                "post": _post_rotation(),
            },
            "/v1/projects/{project}/rotations/{rotation_id}": {
                "parameters": [_project(), _rotation_id()],
                "get": _get_rotation(),
            },
            **_public(),
        },
        "components": {
            "securitySchemes": {
                "apiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The project's current API key. A rotated key is accepted "
                    "for at most the keyring cache's time.",
                },
                "link": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "token",
                    "description": "The token of a link, with `expires` and, if the link has it, "
                    "`inline`. The link opens one object for GET and HEAD until it expires or the "
                    "project's API key is rotated. If there is a token, an API key is ignored.",
                },
            },
            "schemas": {
                "Problem": _problem_schema(),
                "Link": _link_schema(),
                "CiphertextLink": _link_schema(metadata=_STORED_METADATA),
                "Listing": _listing_schema(),
                "ListedObject": _listed_object_schema(),
                "Counts": _counts_schema(),
            },
        },
    }


def _project() -> _Json:
    return {
        "name": "project",
        "in": "path",
        "required": True,
        "description": "The project's id",
        "schema": {"type": "string", "pattern": PROJECT_PATTERN},
    }


def _key() -> _Json:
    return {
        "name": "key",
        "in": "path",
        "required": True,
        "description": "The object's key: 1 to 900 bytes of UTF-8, with slashes as `/` or "
        "`%2F`; no control character, no empty, `.` or `..` segment",
        "schema": {"type": "string", "minLength": 1},
    }


def _rotation_id() -> _Json:
    return {
        "name": "rotation_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": UUID_PATTERN},
    }


def _header(name: str, description: str, schema: _Json | None = None) -> _Json:
    return {
        "name": name,
        "in": "header",
        "description": description,
        "schema": schema or {"type": "string"},
    }


def _conditions() -> list[_Json]:
    return [
        _header("If-None-Match", "304 if the object has this ETag"),
        _header("If-Match", "412 if the object has another ETag"),
        _header("If-Modified-Since", "304 if the object was not stored since"),
        _header("If-Unmodified-Since", "412 if the object was stored since"),
    ]


def _link_or_download() -> list[_Json]:
    return [
        _query(
            "expires",
            "Of a link: when it ends, in seconds since 1970",
            {"type": "integer", "minimum": 1},
        ),
        _query(
            "inline",
            "Of a link: a browser may show the object instead of saving it",
            {"const": "1"},
        ),
        _query(
            "download",
            "With an API key: send the object as an attachment with this file name, of at most "
            f"{DOWNLOAD_NAME_MAX_BYTES} bytes of UTF-8. Never a redirect",
            {"type": "string", "minLength": 1, "pattern": r"^[^\x00-\x1f\x7f-\x9f/\\\\]+$"},
        ),
    ]


def _object_headers(**more: _Json) -> _Json:
    return {
        "ETag": {
            "description": "The commitment to the object's DEK, which no rotation changes. "
            "Plaintext and objects of the earlier system have the storage's ETag",
            **_TAG,
        },
        "Last-Modified": {"schema": {"type": "string"}},
        "Accept-Ranges": {"schema": {"const": "bytes"}},
        "Content-Security-Policy": {"schema": {"const": "sandbox"}},
        "Content-Length": {"schema": {"type": "integer", "minimum": 0}},
        "Content-Disposition": {
            "description": "As stored. By link or with `download`: `attachment` or `inline`, with "
            "a file name",
            "schema": {"type": "string"},
        },
        "Referrer-Policy": {
            "description": "Only by link",
            "schema": {"const": "no-referrer"},
        },
        **more,
    }


def _bytes_response(description: str, **headers: _Json) -> _Json:
    return {
        "description": description,
        "headers": _object_headers(**headers),
        # The type that the object was stored with.
        "content": {"*/*": {"schema": {}}},
    }


def _get() -> _Json:
    content_range = {"schema": {"type": "string", "pattern": r"^bytes \d+-\d+/\d+$"}}
    return {
        "operationId": "getObject",
        "summary": "Read an object, or one range of it",
        "description": "Decrypts while it streams. If the body does not authenticate to its "
        "end, the connection is reset: rely on Content-Length. The caller's metadata is in "
        "X-Keyturn-Meta-* headers.",
        "security": _API_KEY_OR_LINK,
        "parameters": [
            *_link_or_download(),
            _header("Range", "One range of bytes: `bytes=0-99`, `bytes=100-`, `bytes=-100`"),
            _header(
                "If-Range",
                "The ETag that the range is for; if it has changed, the whole object is sent",
            ),
            *_conditions(),
        ],
        "responses": {
            "200": _bytes_response("The object"),
            "206": _bytes_response("The range", **{"Content-Range": content_range}),
            "304": {"description": "Not modified"},
            "307": {
                "description": "Plaintext, if the project allows it: read it from the storage, "
                "at a URL that is valid for 60 seconds. Never by link or with `download`",
                "headers": {"Location": {"schema": {"type": "string"}}},
            },
            **_problems(*_READ, 416),
        },
    }


def _head() -> _Json:
    described = {"description": "As GET, without the body", "headers": _object_headers()}
    without_body = {str(status): {"description": _DESCRIPTIONS[status]} for status in sorted(_READ)}
    return {
        "operationId": "headObject",
        "summary": "Read an object's headers",
        "description": "Decrypts the last chunk, which proves the length.",
        "security": _API_KEY_OR_LINK,
        "parameters": [*_link_or_download(), *_conditions()],
        "responses": {"200": described, "304": {"description": "Not modified"}, **without_body},
    }


def _put() -> _Json:
    accepted = _json_content(
        {
            "type": "object",
            "required": ["upload_id"],
            "properties": {"upload_id": {"type": "string", "pattern": UUID_PATTERN}},
        }
    )
    return {
        "operationId": "putObject",
        "summary": "Upload an object",
        "description": "The body is encrypted while it streams into staging; workers store it. "
        "A key is written once, and cannot be used again after a delete. X-Keyturn-Meta-* "
        "headers become the object's metadata: at most 1 KiB.",
        "parameters": [
            _header(
                "Prefer",
                "`wait=N`: respond when it is stored or refused, or after N seconds",
            )
        ],
        "requestBody": {"required": True, "content": {"*/*": {"schema": {}}}},
        "responses": {
            "201": {"description": "Stored", "content": accepted},
            "202": {"description": "Published", "content": accepted},
            **_problems(*_WRITE, 412),
        },
    }


def _post_link() -> _Json:
    body = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "expires_s": {
                "type": "integer",
                "minimum": 1,
                "maximum": LINK_MAX_S,
                "default": LINK_DEFAULT_S,
                "description": "How long the link is valid, in seconds. A link to the ciphertext "
                f"is valid for at most {CIPHERTEXT_MAX_S}, which is also its default",
            },
            "inline": {
                "type": "boolean",
                "default": False,
                "description": "Whether a browser may show the object instead of saving it. Not "
                "for `ciphertext`",
            },
            "kind": {
                "enum": ["object", "ciphertext"],
                "default": "object",
                "description": "`object`: a URL of the gateway, which opens the object until it "
                "expires or the API key is rotated. The object need not exist yet. `ciphertext`: a "
                "presigned URL of the object's stored bytes. A rotation does not end it. Only for "
                "an object encrypted with Cobblestone-256",
            },
        },
    }
    kinds = [{"$ref": f"#/components/schemas/{name}"} for name in ("CiphertextLink", "Link")]
    return {
        "operationId": "createLink",
        "summary": "Make a link to an object",
        "description": "The link opens this one object without the API key, for GET and HEAD.",
        "requestBody": {"required": False, "content": _json_content(body)},
        "responses": {
            "201": {"description": "The link", "content": _json_content({"anyOf": kinds})},
            **_problems(400, 401, 404, 408, 409, 413, 429, 500, 502, 503),
        },
    }


def _link_schema(**more: _Json) -> _Json:
    return {
        "type": "object",
        "required": ["url", "expires_at", *more],
        "additionalProperties": False,
        "properties": {
            "url": {
                "type": "string",
                "description": "A secret: anyone who has it can read the object",
            },
            "expires_at": {"type": "string", "format": "date-time"},
            **more,
        },
    }


def _list() -> _Json:
    text = {"type": "string"}
    return {
        "operationId": "listObjects",
        "summary": "List objects, one page at a time",
        "description": "Entries are in the byte order of their keys, without deleted objects; "
        "where the storage lists by paths (SeaweedFS), in that order: `a/x` before `a-b`. To "
        "read all pages, pass `next` as `after` until it is null. A page may have fewer entries "
        "than `limit`, or none, although more follow: deleted objects are skipped. With a "
        "delimiter, each folder is one entry; it may hold only deleted objects.",
        "parameters": [
            _query("prefix", "Only keys that begin with this: at most 900 bytes of UTF-8", text),
            _query(
                "delimiter",
                "`/`: instead of the keys that have a slash after the prefix, list their common "
                "prefixes, up to and including that slash",
                {"enum": ["", "/"]},
            ),
            _query(
                "after",
                "Only entries that sort after this. After a common prefix, all keys below it are "
                "skipped",
                text,
            ),
            _query(
                "limit",
                "The most objects and prefixes together",
                {"type": "integer", "minimum": 1, "maximum": MAX_ENTRIES, "default": MAX_ENTRIES},
            ),
        ],
        "responses": {
            "200": {
                "description": "One page",
                "content": _json_content({"$ref": "#/components/schemas/Listing"}),
            },
            **_problems(400, 401, 429, 500, 502, 503),
        },
    }


def _query(name: str, description: str, schema: _Json) -> _Json:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _listing_schema() -> _Json:
    listed = {"$ref": "#/components/schemas/ListedObject"}
    return {
        "type": "object",
        "required": ["objects", "prefixes", "next"],
        "properties": {
            "objects": {"type": "array", "items": listed, "maxItems": MAX_ENTRIES},
            "prefixes": {
                "type": "array",
                "items": {"type": "string"},
                "maxItems": MAX_ENTRIES,
                "description": "Common prefixes; always empty without a delimiter",
            },
            "next": {
                "type": ["string", "null"],
                "description": "Pass it as `after` for the next page; null on the last page",
            },
        },
    }


def _listed_object_schema() -> _Json:
    return {
        "type": "object",
        "required": ["key", "size", "changed_at"],
        "properties": {
            "key": {"type": "string", "minLength": 1},
            "size": {
                "type": ["integer", "null"],
                "minimum": 0,
                "description": "Bytes of the plaintext, computed from the stored length; null if "
                "no read would open the object. Only reading the object, or HEAD, proves it",
            },
            "changed_at": {
                "type": "string",
                "format": "date-time",
                "description": "The storage's time of the last write, in UTC. A rotation moves it",
            },
        },
    }


def _delete() -> _Json:
    accepted = _json_content(
        {
            "type": "object",
            "required": ["request_id"],
            "properties": {"request_id": {"type": "string", "pattern": UUID_PATTERN}},
        }
    )
    applied = {"Preference-Applied": {"schema": {"type": "string"}}}
    return {
        "operationId": "deleteObject",
        "summary": "Delete an object",
        "description": "The key cannot be used again. A delete is final after two leases (30 "
        "seconds by default): a shorter wait ends in 202. A key that was deleted before is "
        "deleted again. A gateway that forbids deletes refuses each with `not_permitted`.",
        "parameters": [
            _header(
                "Prefer",
                "`wait=N`: respond once the delete is final or refused, or after N seconds",
            ),
            _header("If-Match", "412 if the object has another ETag, or was deleted"),
        ],
        "responses": {
            "202": {"description": "Published", "headers": applied, "content": accepted},
            "204": {"description": "Deleted", "headers": applied},
            **_problems(*_DELETE, 412),
        },
    }


def _post_rotation() -> _Json:
    body = _json_content(
        {
            "type": "object",
            "required": ["api_key"],
            "additionalProperties": False,
            "properties": {
                "api_key": {
                    "type": "string",
                    "pattern": "^[A-Za-z0-9._~+/=-]{32,512}$",
                    "description": "The new API key. Save it before you send it",
                }
            },
        }
    )
    accepted = _json_content(
        {
            "type": "object",
            "required": ["rotation_id"],
            "properties": {"rotation_id": {"type": "string", "pattern": UUID_PATTERN}},
        }
    )
    return {
        "operationId": "rotate",
        "summary": "Rotate the project to a new API key",
        "description": "Authenticate with the current key. The rotation expects that key's "
        "generation. Once it is accepted, only the new key is accepted. `Prefer: wait=N` waits "
        "until the rotation is accepted or refused. A gateway may be set up to rotate no key: then "
        "every request with the current key is refused with `not_permitted`.",
        "parameters": [_header("Prefer", "`wait=N`")],
        "requestBody": {"required": True, "content": body},
        "responses": {
            "202": {
                "description": "Published",
                "headers": {"Location": {"schema": {"type": "string"}}},
                "content": accepted,
            },
            **_problems(*_WRITE),
        },
    }


def _get_rotation() -> _Json:
    states = ["requested", "rejected", "accepted", "running", "failed", "completed"]
    schema = {
        "type": "object",
        "required": ["rotation_id", "project", "state"],
        "properties": {
            "rotation_id": {"type": "string", "pattern": UUID_PATTERN},
            "project": {"type": "string"},
            "state": {
                "enum": states,
                "description": "`accepted`: the new key is in effect, and there is no record of "
                "the sweep (yet, or any more). Only `completed` with `clean` means that no old "
                "wrap is left. `requested` and `rejected` are known only to the gateway that "
                "published the rotation",
            },
            "generation": {"type": "integer", "minimum": 1},
            "counts": {"$ref": "#/components/schemas/Counts"},
            "code": {"type": "string"},
            "detail": {"type": "string"},
        },
    }
    return {
        "operationId": "getRotation",
        "summary": "Read the state of a rotation",
        "description": "Authenticate with the current API key: the new one, once the rotation "
        "is accepted.",
        "responses": {
            "200": {"description": "Its state", "content": _json_content(schema)},
            **_problems(401, 404, 429, 500, 502, 503),
        },
    }


def _public() -> _Json:
    """Return the paths that need no API key."""
    alive = {"type": "object", "required": ["status"], "properties": {"status": {"const": "alive"}}}
    ready = {
        "type": "object",
        "required": ["ready", "checks"],
        "properties": {
            "ready": {"type": "boolean"},
            "checks": {"type": "object", "additionalProperties": {"type": "boolean"}},
        },
    }
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/healthz": _open(
            "alive", "Whether the process is alive", {"200": ("Alive", _json_content(alive))}
        ),
        "/readyz": _open(
            "ready",
            "Whether broker and storage respond",
            {
                "200": ("Ready", _json_content(ready)),
                "503": ("Not ready", _json_content(ready)),
            },
        ),
        "/metrics": _open("metrics", "Metrics for Prometheus", {"200": ("Metrics", text)}),
    }


def _open(operation: str, summary: str, contents: dict[str, tuple[str, _Json]]) -> _Json:
    responses = {
        status: {"description": description, "content": content}
        for status, (description, content) in contents.items()
    }
    return {
        "get": {
            "operationId": operation,
            "summary": summary,
            "security": [],
            "responses": responses,
        }
    }


def _json_content(schema: _Json) -> _Json:
    return {"application/json": {"schema": schema}}


def _problems(*statuses: int) -> _Json:
    codes: dict[int, list[str]] = {}
    for code in all_errors():
        codes.setdefault(status_for_code(code), []).append(code)
    return {
        str(status): {
            "description": _DESCRIPTIONS[status]
            + (f" ({', '.join(sorted(codes[status]))})" if status in codes else ""),
            "content": {MEDIA_TYPE: {"schema": _PROBLEM}},
        }
        for status in sorted(statuses)
    }


def _problem_schema() -> _Json:
    return {
        "type": "object",
        "description": "RFC 9457",
        "required": ["title", "status"],
        "properties": {
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {
                "enum": sorted(all_errors()),
                "description": "Keyturn's error code; absent if the HTTP status says it all",
            },
            "detail": {"type": "string"},
            "upload_id": {"type": "string"},
            "rotation_id": {"type": "string"},
            "request_id": {"type": "string"},
        },
    }


def _counts_schema() -> _Json:
    counts: _Json = {name: {"type": "integer", "minimum": 0} for name in COUNT_FIELDS}
    return {
        "type": "object",
        "required": [*COUNT_FIELDS, "clean"],
        "properties": counts | {"clean": {"type": "boolean"}},
    }
