"""CORS: which pages may read the gateway's responses in a browser (SPEC 9.3).

The origins come from a setting. By default there are none, and no response has a CORS header.
Browsers send no cookies and no stored credentials, so a page has only the API key or the link that
it was given.
"""

from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from keyturn_workers.gateway.problems import problem

_METHODS: Final = ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS")
_BAD_REQUEST: Final = 400
_VARY: Final = "vary"


def with_cors(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """Return the application with CORS for these origins; `*` is every origin.

    It must be outside of the application's error handlers: a page can read a problem document
    only if that has the headers too.
    """
    if not origins:
        return app
    return _Cors(
        app,
        allow_origins=origins,
        allow_methods=_METHODS,
        # Mirrors the requested ones. A `*` in the response would not include `Authorization`.
        allow_headers=("*",),
        expose_headers=("*",),
        # A page of a public site may use a gateway in a private network.
        allow_private_network=True,
    )


class _Cors(CORSMiddleware):
    """Starlette's, with refusals as problem documents."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a preflight: it needs no API key, and reads nothing."""
        response = super().preflight_response(request_headers)
        if response.status_code != _BAD_REQUEST:
            return response
        detail = "CORS does not allow this origin or method"
        return problem(_BAD_REQUEST, detail, headers={_VARY: response.headers[_VARY]})
