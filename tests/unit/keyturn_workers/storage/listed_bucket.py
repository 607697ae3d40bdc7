"""An in-memory bucket for listings only, in one of the orders that servers use.

It replaces both clients of `S3Storage`, and answers their requests as the server would.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args
from urllib.parse import parse_qs, quote

from keyturn_workers.storage import Capabilities
from keyturn_workers.storage.s3 import S3Storage
from keyturn_workers.storage.s3_http import S3Response

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from types_aiobotocore_s3.client import S3Client

    from keyturn_workers.storage.s3_http import S3HttpClient

Order = Literal["bytes", "segments", "versions"]
"""By the keys' bytes; by their segments; and by segments that end with `.versions`."""

ORDERS: tuple[Order, ...] = get_args(Order)
_TIME = datetime(2026, 11, 26, tzinfo=UTC)


class ListedBucket:
    """The server.

    Args:
        keys: The objects.
        order: How it lists them.
        page_keys: The most entries of a page.
    """

    def __init__(self, keys: Iterable[str], order: Order, page_keys: int = 1000) -> None:
        self.keys = set(keys)
        self.deleted: set[str] = set()  # the latest version of these is a delete marker
        self.versions_per_key = 1
        self.requests: Counter[str] = Counter()
        self.meta = SimpleNamespace(events=SimpleNamespace(register_first=lambda *_: None))
        self._order = order
        self._page_keys = page_keys

    def storage(self, *, by_segment: bool | None = None) -> S3Storage:
        """A storage that uses this server."""
        http, client = cast("S3HttpClient", self), cast("S3Client", self)
        return S3Storage(http, client, "bucket", Capabilities(listings_by_segment=by_segment))

    @property
    def by_segment(self) -> bool:
        """What the storage is to find out."""
        return self._order != "bytes"

    async def call(self, *_request: object, query: str, **_: object) -> S3Response:
        """A listing of objects, as `S3HttpClient` requests it."""
        fields = {name: values[0] for name, values in parse_qs(query).items()}
        prefix, delimiter = fields.get("prefix", ""), fields.get("delimiter", "")
        start = fields.get("continuation-token") or fields.get("start-after", "")
        names = self._following(prefix, delimiter, start)
        page = names[: min(int(fields["max-keys"]), self._page_keys)]
        last = page[-1] if len(page) < len(names) else ""
        token = "/".join(self._path(last)) + "/" * last.endswith("/") if last else ""
        body = _xml(self._shown(page), delimiter, prefix, token)
        return S3Response(200, {}, body)

    async def list_objects_v2(self, **fields: Any) -> Mapping[str, object]:
        """The same for botocore."""
        start = fields.get("StartAfter", "")
        names = self._following(fields["Prefix"], "", start)
        page = names[: min(fields["MaxKeys"], self._page_keys)]
        rows = [
            {"Key": name, "Size": 1, "ETag": '"e"', "LastModified": _TIME}
            for name in self._shown(page)
        ]
        return {"Contents": rows, "IsTruncated": len(page) < len(names)}

    async def list_object_versions(self, **fields: Any) -> Mapping[str, object]:
        """A page of versions: collected in the order of folders, but continued by bytes."""
        self.requests["versions"] += 1
        prefix, after = fields["Prefix"], fields.get("KeyMarker", "")
        delimiter, version = fields.get("Delimiter", ""), fields.get("VersionIdMarker", "")
        rows: list[tuple[str, int]] = []
        for key in sorted(self.keys, key=self._path if self.by_segment else None):
            is_marker = key == after and bool(version)
            hidden = self.by_segment and _is_left_out(key, after)
            # A key is found by the name of the folder with its versions.
            path = f"{key}.versions" if self._order == "versions" else key
            if not path.startswith(prefix) or hidden or not (key > after or is_marker):
                continue
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            if end >= 0:
                row = (key[: end + 1], 0)
                rows += [row] if row not in rows else []
            else:
                first = int(version) + 1 if is_marker else 0
                rows += [(key, number) for number in range(first, self.versions_per_key)]
        most = min(fields["MaxKeys"], self._page_keys)
        page = sorted(rows[: most + 1])[:most]
        versions: list[object] = []
        markers: list[object] = []
        for key, number in page:
            is_marker = number == 0 and key in self.deleted
            if key in self.keys:
                shown: dict[str, object] = {"Key": key, "VersionId": f"{number}", "Size": 1}
                shown.update(IsLatest=number == 0, ETag='"e"', LastModified=_TIME)
                (markers if is_marker else versions).append(shown)
        found = {"Versions": versions, "DeleteMarkers": markers}
        if len(rows) <= most:
            return {**found, "IsTruncated": False}
        key, number = page[-1]
        next_page = {"NextKeyMarker": key, "NextVersionIdMarker": f"{number}"}
        return {**found, **next_page, "IsTruncated": True}

    async def get_bucket_versioning(self, **_: object) -> Mapping[str, str]:
        """Whether the bucket keeps versions."""
        return {"Status": "Enabled"} if self._order == "versions" else {}

    def _following(self, prefix: str, delimiter: str, start: str) -> list[str]:
        self.requests["objects"] += 1
        keys = self.keys - self.deleted
        names = entries_of(keys, prefix, delimiter)
        if self._order == "versions":
            # A key is found by its folder `….versions`; with a delimiter, as a nonexistent folder.
            found = {key for key in keys if f"{key}.versions".startswith(prefix)}
            found = {key for key in found if not key.startswith(prefix)}
            names |= {prefix + key.partition("/")[0] + "/" for key in found} if delimiter else found
        if self._order == "bytes":
            return sorted(name for name in names if name > start)
        ordered = sorted(names, key=self._path)
        return [
            name
            for name in ordered
            if self._path(name) > segments(start)
            # The folder with the marker's own name is also left out.
            and name != start
            and (not start or start.endswith("/") or not name.startswith(f"{start}/"))
        ]

    def _shown(self, page: list[str]) -> list[str]:
        return sorted(page) if self._order == "versions" else page

    def _path(self, name: str) -> list[str]:
        is_folder = name.endswith("/") and name not in self.keys
        return segments(f"{name}.versions" if self._order == "versions" and not is_folder else name)


def segments(name: str) -> list[str]:
    """The names of the folders that contain a key, and its own name."""
    return name.rstrip("/").split("/") if name else []


def entries_of(keys: Iterable[str], prefix: str, delimiter: str) -> set[str]:
    """The keys and common prefixes under a prefix."""
    names = set()
    for key in keys:
        if key.startswith(prefix):
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            names.add(key if end < 0 else key[: end + 1])
    return names


def _is_left_out(key: str, after: str) -> bool:
    """Whether a folder of the key is skipped, because it sorts before the key to start after."""
    folders = [key[:at] for at in range(len(key)) if key[at] == "/"]
    return any(
        folder < after and not after.startswith(f"{folder}/") and folder != after
        for folder in folders
    )


def _xml(page: list[str], delimiter: str, prefix: str, token: str) -> bytes:
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    rows = []
    for name in page:
        text = quote(name, safe="")
        if delimiter and delimiter in name[len(prefix) :]:
            rows.append(f"<CommonPrefixes><Prefix>{text}</Prefix></CommonPrefixes>")
        else:
            time = _TIME.isoformat().replace("+00:00", "Z")
            rows.append(
                f"<Contents><Key>{text}</Key><LastModified>{time}</LastModified>"
                "<ETag>&quot;e&quot;</ETag><Size>1</Size></Contents>"
            )
    return (
        "<ListBucketResult><EncodingType>url</EncodingType>"
        f"<IsTruncated>{str(bool(token)).lower()}</IsTruncated>{more}{''.join(rows)}"
        "</ListBucketResult>"
    ).encode()
