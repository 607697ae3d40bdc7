"""Control requests as a role of a worker process (SPEC 6.1)."""

from datetime import UTC, datetime
from typing import Final

from contracts.errors import MalformedRequestError
from contracts.messages import EnrollRequested, ProjectEnrolled, Request
from contracts.names import format_time
from contracts.topology import CONTROL_QUEUE, CONTROL_REQUESTS
from workers.broker import Done
from workers.control.enrolment import Enroller


class ControlRole:
    """Serves `keyturn.control`.

    Rotations, sweeps and deletes are well-formed requests that this release cannot carry
    out. They are refused aloud and kept as dead letters, which a later release's workers
    serve when they are replayed.
    """

    queue: Final = CONTROL_QUEUE
    served: Final = CONTROL_REQUESTS

    def __init__(self, enroller: Enroller) -> None:
        self._enroller = enroller

    async def serve(self, request: Request, publisher: str, *, seen_before: bool) -> Done:
        """Serve one enrolment; coming again changes nothing."""
        del publisher, seen_before
        if not isinstance(request, EnrollRequested):
            raise MalformedRequestError(
                f"{request.type} is not served by this release; replay it to one that does"
            )
        generation = await self._enroller.enroll(request)
        event = ProjectEnrolled(
            request_id=request.request_id,
            project=request.project,
            at=format_time(datetime.now(UTC)),
            generation=generation,
        )
        logged = {
            "request_id": request.request_id,
            "project": request.project,
            "generation": generation,
        }
        return Done(event, logged)
