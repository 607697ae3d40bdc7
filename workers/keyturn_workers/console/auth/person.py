"""The person behind a request, and their role (SPEC 16.3).

Routes run behind `Auth.protect`, which admits only signed-in people:

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
"""The ASGI scope's key for the session of a request."""


@dataclass(frozen=True, slots=True)
class Person:
    """A signed-in person.

    Attributes:
        name: The actor in requests and audit records. It is unique, also if two people have the
            same name at the provider.
        role: `operate` may do everything that the console's grant allows; `view` changes nothing.
        id: The account: the same at each sign-in.
    """

    name: str
    role: Role
    id: str

    @property
    def may_operate(self) -> bool:
        """True if this person may change something."""
        return self.role == "operate"


@dataclass(frozen=True, slots=True)
class Session:
    """The content of a signed cookie, after its check.

    Attributes:
        id: A digest of the session's secret id: it may be logged and compared.
        csrf: The token that each form of this session must send.
        ends_at: Its latest end, in seconds since 1970.
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
    """Return the session of a request behind `Auth.protect`.

    Raises:
        RuntimeError: the route is not behind it.
    """
    session = request.scope.get(SESSION_SCOPE)
    if session is None:
        raise RuntimeError("this route is not protected")
    return cast("Session", session)


def person_of(request: HTTPConnection) -> Person:
    """Return the person behind a request."""
    return session_of(request).person


def require_operate(request: HTTPConnection) -> Person:
    """Return the person behind a request, if they may change something.

    Raises:
        Forbidden: they may not.
    """
    person = person_of(request)
    if not person.may_operate:
        raise Forbidden
    return person
