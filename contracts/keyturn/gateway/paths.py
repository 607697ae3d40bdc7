"""Where a request of the gateway's client goes (SPEC 9): checked names, encoded. Pure."""

from typing import Final
from urllib.parse import quote

from keyturn.errors import MalformedRequestError
from keyturn.identifiers import check_object_key, is_project, is_uuid

_UNRESERVED: Final = "/-_.~"


def objects_path(project: str) -> str:
    """The path of a project's objects.

    Raises:
        MalformedRequestError: the project does not have the form of SPEC 1.
    """
    return f"{_project_path(project)}/objects"


def object_path(project: str, object_key: str) -> str:
    """The path of one object.

    Raises:
        MalformedRequestError: the project or the key does not have the form of SPEC 1.
    """
    try:
        check_object_key(object_key)
    except ValueError as exc:
        raise MalformedRequestError(str(exc)) from exc
    return f"{objects_path(project)}/{quote(object_key, safe=_UNRESERVED)}"


def rotations_path(project: str) -> str:
    """The path of a project's rotations.

    Raises:
        MalformedRequestError: the project does not have the form of SPEC 1.
    """
    return f"{_project_path(project)}/rotations"


def rotation_path(project: str, rotation_id: str) -> str:
    """The path of one rotation.

    Raises:
        MalformedRequestError: the project or the id does not have the form of SPEC 1.
    """
    if not is_uuid(rotation_id):
        raise MalformedRequestError("a rotation's id is a UUID in lower case")
    return f"{rotations_path(project)}/{rotation_id}"


def _project_path(project: str) -> str:
    if not is_project(project):
        raise MalformedRequestError("a project id has 1 to 63 characters of a-z, 0-9 and -")
    return f"/v1/projects/{project}"
