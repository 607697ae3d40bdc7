"""What talking to the gateway can end in, beside the codes of SPEC 12.

    GatewayError
     ├── GatewayUnavailableError   not reached, or no answer to a read; nothing took effect
     ├── AnswerLostError           an upload or a rotation was sent, and no answer came
     ├── UnexpectedAnswerError     an answer that SPEC 9 does not know: a proxy's page, say
     └── BodyCutError              the body ended before its length

What the gateway itself refuses is the `keyturn.errors.KeyturnError` of the code that it
tells. None of them ever holds an API key, a body, or the address of a redirect, whose query
is a permission to read. They have no cause for the same reason: errors of aiohttp can hold
the request with all its headers.
"""


class UnencryptedGatewayWarning(UserWarning):
    """The API key goes to an `http://` address of another machine: the network can read it."""


class GatewayError(Exception):
    """The base of all below."""


class GatewayUnavailableError(GatewayError):
    """The gateway could not be reached, or did not answer in time. Repeating is fine."""


class AnswerLostError(GatewayError):
    """The request was sent, in part or whole, and its answer did not come.

    It may have taken effect, or may not. After an upload, look with `stat`: a repeated one
    is refused with `already_exists` where the first was stored. After a rotation, try the
    new API key. Both may still be under way for a while.
    """


class UnexpectedAnswerError(GatewayError):
    """The answer is not the gateway's, or does not fit the question.

    Where `status` is 500 or more, an upload or a rotation may have taken effect all the
    same: a proxy tells so of an answer that it lost.

    Args:
        told: What is wrong with it; never a part of its body.
        status: Its HTTP status.
    """

    def __init__(self, told: str, *, status: int) -> None:
        super().__init__(told)
        self.status = status


class BodyCutError(GatewayError):
    """The connection ended, or stood still, before the whole body was there.

    The gateway ends it so where a chunk does not authenticate or the storage fails. What
    was given out before is authentic, but it is not the whole object, or not the whole
    range: it must not be kept under the object's name.
    """
