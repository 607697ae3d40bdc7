"""The port to the sources that an upload's body may come from (SPEC 17.1 to 17.3)."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from keyturn.errors import MalformedRequestError, NotPermittedError, UnknownSourceError
from keyturn.messages.requests import SourceBody, SourceObject, UploadRequested
from keyturn_workers.core.source_mapping import Source, Target
from keyturn_workers.core.storage_port import ObjectStream


class SourceReader(Protocol):
    """One source, as an upload uses it; implemented by `pipeline.sources.bucket`."""

    source: Source

    def stream(self, named: SourceObject) -> AbstractAsyncContextManager[ObjectStream]:
        """Open exactly the object that is named.

        Raises:
            SourceMissingError, SourceChangedError: the source no longer has this object.
            ArchivedObjectError: it must be restored first.
            SourceUnavailableError: also from the stream's pieces, which `pieces_of` translates.
        """
        ...

    def pieces_of(self, stream: ObjectStream) -> AsyncIterator[bytes]:
        """The stream's bytes, in pieces of 1 MiB at most.

        Raises:
            SourceUnavailableError: the connection broke before the object's end.
        """
        ...

    async def delete_read(self, named: SourceObject) -> None:
        """Delete exactly the object that was read and stored, if the source's settings say so."""
        ...


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of a process, and the rules by which a request may name one."""

    deployment: str = ""
    buckets: Mapping[str, SourceReader] = field(default_factory=dict)

    def bucket_of(self, request: UploadRequested) -> SourceReader:
        """Return the source whose object the request names.

        Raises:
            UnknownSourceError: this process has no such source.
            NotPermittedError: the source maps the object to another place, or to none.
            MalformedRequestError: the upload's id is not the object's.
        """
        if not isinstance(request.body, SourceBody):
            raise TypeError("not the body of a source")
        named = request.body.source
        bucket = self.buckets.get(named.name)
        if bucket is None:
            raise UnknownSourceError(f"this worker has no source {named.name}")
        if bucket.source.target(named.key) != Target(request.project, request.key):
            raise NotPermittedError(f"source {named.name} maps this object to another place")
        if request.upload_id != named.upload_id(self.deployment):
            raise MalformedRequestError("upload_id: not the id of this object of the source")
        return bucket
