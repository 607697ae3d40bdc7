"""An in-memory bucket for listings only, in one of the orders that servers use.

It replaces the HTTP client of `S3Storage`, and answers as the server would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs

from keyturn.identifiers import byte_order, path_order
from keyturn_workers.storage import Capabilities
from keyturn_workers.storage.listing import entry_of
from keyturn_workers.storage.s3 import S3Storage
from keyturn_workers.storage.s3_http import S3Response
from tests.unit.keyturn_workers.storage.scripted_server import listed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyturn_workers.storage.s3_http import S3HttpClient


class ListedBucket:
    """The server.

    Args:
        keys: The objects.
        by_path: Whether it keeps them in folders, as SeaweedFS does.
        page_keys: The most entries of a page.
    """

    def __init__(self, keys: Iterable[str], *, by_path: bool, page_keys: int = 1000) -> None:
        self._keys = set(keys)
        self._by_path = by_path
        self._page_keys = page_keys

    def storage(self, *, measured: bool = True) -> S3Storage:
        """A storage that uses this server, and knows its order if it is measured."""
        known = Capabilities(lists_by_path=self._by_path if measured else None)
        return S3Storage(cast("S3HttpClient", self), known)

    async def call(self, *_request: object, query: str, **_: object) -> S3Response:
        """A listing of objects, as `S3HttpClient` requests it."""
        fields = {name: values[0] for name, values in parse_qs(query).items()}
        prefix, delimiter = fields.get("prefix", ""), fields.get("delimiter", "")
        start = fields.get("continuation-token") or fields.get("start-after", "")
        order = path_order if self._by_path else byte_order
        names: dict[str, None] = {}
        for key in sorted(self._keys, key=order):
            if key.startswith(prefix) and order(key) > order(start) and not self._hides(key, start):
                names[entry_of(key, prefix, delimiter)] = None
        max_keys = int(fields["max-keys"])
        page = list(names)[: min(max_keys, self._page_keys)]
        left = list(names)[len(page) :]
        # SeaweedFS ends a listing after a full page, if only keys below its last object follow.
        hides = self._by_path and len(page) == max_keys
        is_last = all(hides and name.startswith(f"{page[-1]}/") for name in left)
        more = "" if is_last else page[-1]
        folders = [name for name in page if delimiter and name.endswith(delimiter)]
        keys = [name for name in page if name not in folders]
        return S3Response(200, {}, listed(*keys, folders=folders, more=more).body)

    def _hides(self, key: str, start: str) -> bool:
        """The folder that has the name to start after is left out with it."""
        return self._by_path and start != "" and key.startswith(f"{start}/")
