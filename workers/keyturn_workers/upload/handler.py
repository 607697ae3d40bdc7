"""Uploads as a role of a worker process (SPEC 6.4, 7)."""

from datetime import UTC, datetime
from functools import partial
from typing import Final

from keyturn.errors import (
    AlreadyExistsError,
    BodyTooLargeError,
    CodedError,
    DeletedKeyError,
    MalformedRequestError,
)
from keyturn.identifiers import format_time
from keyturn.messages import Request, RequestOrigin, StagedBody, UploadRequested, UploadStored
from keyturn.topology import UPLOAD_QUEUE, UPLOAD_REQUESTS
from keyturn_workers.amqp import Handled
from keyturn_workers.upload.uploader import Uploader, UploadResult


class UploadHandler:
    """Serves `keyturn.upload`."""

    queue: Final = UPLOAD_QUEUE
    served: Final = UPLOAD_REQUESTS

    def __init__(self, uploader: Uploader) -> None:
        self._uploader = uploader

    async def serve(self, request: Request, origin: RequestOrigin, *, seen_before: bool) -> Handled:
        """Store one upload; its staged body goes once the event is told."""
        if not isinstance(request, UploadRequested):
            raise MalformedRequestError(f"{request.type} is not served here")
        settled = await self._uploader.serve(request, origin.publisher, seen_before=seen_before)
        return self._done(request, origin, settled)

    async def find_completed(self, request: Request, origin: RequestOrigin) -> Handled | None:
        """An upload past its age whose object exists (SPEC 6.3); None where nothing is stored."""
        if not isinstance(request, UploadRequested):
            return None
        settled = await self._uploader.find_completed(request, origin.publisher)
        return None if settled is None else self._done(request, origin, settled)

    async def after_refusal(
        self, request: Request, origin: RequestOrigin, error: CodedError
    ) -> None:
        """Delete the staged body of an upload that can never be stored (SPEC 6.9).

        Of any other refusal it stays, and is swept after its time: the upload may be sent again.
        """
        if not isinstance(request, UploadRequested) or not isinstance(request.body, StagedBody):
            return
        match error:
            case DeletedKeyError() | BodyTooLargeError():
                pass
            case AlreadyExistsError() if await self._uploader.holds_another_upload(request):
                pass
            case _:
                return
        await self._uploader.discard_staged(request, origin.publisher)

    def _done(
        self, request: UploadRequested, origin: RequestOrigin, settled: UploadResult
    ) -> Handled:
        event = UploadStored(
            upload_id=request.upload_id,
            project=request.project,
            at=format_time(datetime.now(UTC)),
            key=request.key,
            size=settled.size_bytes,
            generation=settled.generation,
        )
        logged = {
            "upload_id": request.upload_id,
            "project": request.project,
            "key": request.key,
            "size_bytes": settled.size_bytes,
            "generation": settled.generation,
        }
        return Handled(
            event, logged, partial(self._uploader.discard_staged, request, origin.publisher)
        )
