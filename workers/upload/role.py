"""Uploads as a role of a worker process (SPEC 6.4, 7)."""

from datetime import UTC, datetime
from functools import partial
from typing import Final

from contracts.errors import KeyturnError, MalformedRequestError
from contracts.messages import Request, RequestOrigin, UploadRequested, UploadStored
from contracts.names import format_time
from contracts.topology import UPLOAD_QUEUE, UPLOAD_REQUESTS
from workers.broker import Done
from workers.upload.uploader import Uploader


class UploadRole:
    """Serves `keyturn.upload`."""

    queue: Final = UPLOAD_QUEUE
    served: Final = UPLOAD_REQUESTS

    def __init__(self, uploader: Uploader) -> None:
        self._uploader = uploader

    async def serve(self, request: Request, origin: RequestOrigin, *, seen_before: bool) -> Done:
        """Store one upload; its staged body goes once the event is told."""
        if not isinstance(request, UploadRequested):
            raise MalformedRequestError(f"{request.type} is not served here")
        settled = await self._uploader.serve(request, origin.publisher, seen_before=seen_before)
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
        return Done(
            event, logged, partial(self._uploader.discard_staged, request, origin.publisher)
        )

    async def find_completed(self, request: Request, origin: RequestOrigin) -> Done | None:
        """Nothing is looked up yet."""
        del request, origin
        return None

    async def after_refusal(
        self, request: Request, origin: RequestOrigin, error: KeyturnError
    ) -> None:
        """Nothing is left to clear up."""
        del request, origin, error
