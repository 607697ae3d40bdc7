"""The request handler of the upload worker (SPEC 6.4, 7)."""

from datetime import UTC, datetime
from functools import partial
from typing import Final

from keyturn.errors import (
    AlreadyExistsError,
    BodyTooLargeError,
    CodedError,
    DeletedKeyError,
    MalformedRequestError,
    ProjectErasedError,
)
from keyturn.identifiers import format_time
from keyturn.messages.events import UploadStored
from keyturn.messages.requests import Request, StagedBody, UploadRequested
from keyturn.request_origin import RequestOrigin
from keyturn.topology import UPLOAD_QUEUE, UPLOAD_REQUESTS
from keyturn_workers.pipeline.amqp.outcomes import Handled
from keyturn_workers.pipeline.upload.uploader import Uploader, UploadResult


class UploadHandler:
    """Serves `keyturn.upload`."""

    queue: Final = UPLOAD_QUEUE
    served: Final = UPLOAD_REQUESTS

    def __init__(self, uploader: Uploader) -> None:
        self._uploader = uploader

    async def serve(
        self, request: Request, origin: RequestOrigin, *, seen_before: bool, attempts: int = 0
    ) -> Handled:
        """Store one upload; a body outside the request is deleted once the event is published."""
        del attempts
        if not isinstance(request, UploadRequested):
            raise MalformedRequestError(f"{request.type} is not served here")
        result = await self._uploader.serve(request, origin.publisher, seen_before=seen_before)
        return self._handled(request, origin, result)

    async def find_completed(self, request: Request, origin: RequestOrigin) -> Handled | None:
        """The event of an expired upload whose object exists; None if it does not (SPEC 6.3)."""
        if not isinstance(request, UploadRequested):
            return None
        result = await self._uploader.find_completed(request, origin.publisher)
        return None if result is None else self._handled(request, origin, result)

    def gives_up(self, error: CodedError) -> bool:
        """No transient error ends an upload: its keyring may be repaired meanwhile."""
        del error
        return False

    async def after_refusal(
        self, request: Request, origin: RequestOrigin, error: CodedError
    ) -> None:
        """Delete the staged body of an upload that can never be stored (SPEC 6.9).

        After any other refusal, the body stays until the cleanup of staging: the upload may be
        replayed.
        """
        if not isinstance(request, UploadRequested) or not isinstance(request.body, StagedBody):
            return
        match error:
            case DeletedKeyError() | BodyTooLargeError() | ProjectErasedError():
                pass
            case AlreadyExistsError() if await self._uploader.holds_another_upload(request):
                pass
            case _:
                return
        await self._uploader.discard_body(request, origin.publisher)

    def _handled(
        self, request: UploadRequested, origin: RequestOrigin, result: UploadResult
    ) -> Handled:
        event = UploadStored(
            upload_id=request.upload_id,
            project=request.project,
            at=format_time(datetime.now(UTC)),
            key=request.key,
            size=result.size_bytes,
            generation=result.generation,
        )
        logged = {
            "upload_id": request.upload_id,
            "project": request.project,
            "key": request.key,
            "size_bytes": result.size_bytes,
            "generation": result.generation,
        }
        return Handled(
            event, logged, partial(self._uploader.discard_body, request, origin.publisher)
        )
