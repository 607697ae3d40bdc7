"""Reads a request's JSON body into a model, with a limit on its size and its time (SPEC 9)."""

from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.types import Receive

from keyturn.errors import BodyTooLargeError, MalformedRequestError
from keyturn.messages import load_json, problems
from keyturn_workers.http_server.client_connection import read_body

JSON_BODY_TIMEOUT_S: Final = 10.0
"""How long a client may send nothing of a JSON body, which is small."""

_Model = TypeVar("_Model", bound=BaseModel)


async def read_json_body(
    receive: Receive, model: type[_Model], *, max_bytes: int, timeout_s: float
) -> _Model:
    """Read the body to its end.

    Args:
        receive: The request's `receive`.
        model: What the body must be. No body at all counts as an object without fields.
        max_bytes: The largest body.
        timeout_s: How long the client may send nothing.

    Raises:
        BodyTooLargeError: the body is larger.
        MalformedRequestError: it is not a JSON document of the model. No value is repeated.
        ClientGoneError: the client disconnected or stopped sending.
    """
    content = bytearray()
    async for piece in read_body(receive, timeout_s):
        content += piece
        if len(content) > max_bytes:
            raise BodyTooLargeError(f"at most {max_bytes} bytes")
    try:
        return model.model_validate(load_json(bytes(content) or b"{}"))
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None  # the cause contains the values
