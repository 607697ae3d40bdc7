"""`GET` of a project's objects: one page of a listing (SPEC 9.3)."""

import orjson
from starlette.requests import Request
from starlette.responses import Response

from keyturn_workers.gateway.auth import Authenticator
from keyturn_workers.gateway.fair_shares import ConcurrencyLimit
from keyturn_workers.gateway.listing_query import ListingQuery
from keyturn_workers.gateway.object_lister import ObjectLister, Page
from keyturn_workers.gateway.paths import parse_project
from keyturn_workers.http_server.client_connection import run_while_connected


class ListingRoutes:
    """Lists objects.

    Args:
        auth: Authenticates callers.
        limit: Limits concurrent requests, of one project and in all.
        lister: Lists the objects.
    """

    def __init__(self, auth: Authenticator, limit: ConcurrencyLimit, lister: ObjectLister) -> None:
        self._auth = auth
        self._limit = limit
        self._lister = lister

    async def get(self, request: Request) -> Response:
        """Return one page."""
        project = parse_project(request.scope["raw_path"])
        authorization = request.headers.getlist("authorization")
        caller = await self._auth.authenticate(project, authorization)
        query = ListingQuery.parse(request.scope["query_string"])
        with self._limit.hold(project):
            listing = self._lister.list(caller.snapshot.keyring, query)
            page = await run_while_connected(request.receive, listing)
        headers = {"cache-control": "no-store"}
        return Response(_document(page), headers=headers, media_type="application/json")


def _document(page: Page) -> bytes:
    objects = [
        {"key": each.key, "size": each.size_bytes, "changed_at": each.changed_at}
        for each in page.objects
    ]
    document = {"objects": objects, "prefixes": page.prefixes, "next": page.next_after}
    return orjson.dumps(document, option=orjson.OPT_UTC_Z)
