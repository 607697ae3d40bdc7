"""Who may use the console, and what protects its requests (SPEC 16.3)."""

from keyturn_workers.console.auth.person import (
    CSRF_FIELD,
    Forbidden,
    Person,
    Role,
    Session,
    csrf_token,
    person_of,
    require_operate,
    session_of,
)

__all__ = [
    "CSRF_FIELD",
    "Forbidden",
    "Person",
    "Role",
    "Session",
    "csrf_token",
    "person_of",
    "require_operate",
    "session_of",
]
