"""The person that a request comes from, and what they may do (SPEC 16.3).

Routes run behind `Auth.protect`, which lets only people who are signed in through to them:

    person = person_of(request)
    person = require_operate(request)  # 403 for the role `view`
"""

from dataclasses import dataclass
from typing import Final, Literal, cast

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

Role = Literal["view", "operate"]
CSRF_FIELD: Final = "csrf"
SESSION_SCOPE: Final = "keyturn.session"
"""Where the ASGI scope holds the session of a request."""


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who is signed in.

    Attributes:
        name: What requests and audit records name as their actor. It is unique, also where two
            people show the same name to the provider.
        role: `operate` may everything that the console's grant allows; `view` changes nothing.
        id: The account: the same at each sign-in.
    """

    name: str
    role: Role
    id: str

    @property
    def may_operate(self) -> bool:
        """Whether this person may change something."""
        return self.role == "operate"


@dataclass(frozen=True, slots=True)
class Session:
    """What a signed cookie says, once it was checked.

    Attributes:
        id: A digest of the session's secret id: it may be logged and compared.
        csrf: The token that each form of this session must send.
        ends_at: When it ends at the latest, in seconds since 1970.
    """

    id: str
    person: Person
    csrf: str
    ends_at: float


class Forbidden(HTTPException):  # a status, as Starlette names its own
    """The person's role does not allow this."""

    def __init__(self, detail: str = "Your role does not allow this.") -> None:
        super().__init__(403, detail)


def session_of(request: HTTPConnection) -> Session:
    """The session of a request behind `Auth.protect`.

    Raises:
        RuntimeError: the route is not behind it.
    """
    session = request.scope.get(SESSION_SCOPE)
    if session is None:
        raise RuntimeError("this route is not protected")
    return cast("Session", session)


def person_of(request: HTTPConnection) -> Person:
    """The person that a request comes from."""
    return session_of(request).person


def require_operate(request: HTTPConnection) -> Person:
    """The person that a request comes from, if they may change something.

    Raises:
        Forbidden: they may not.
    """
    person = person_of(request)
    if not person.may_operate:
        raise Forbidden
    return person
