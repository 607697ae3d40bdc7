"""The user wrap alone opens an object, for its own project and key (SPEC 4, 9.3)."""

from __future__ import annotations

import pytest

from keyturn.crypto import user_kek
from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    NotFoundError,
    NoUsableWrapError,
    UnknownAlgorithmError,
)
from keyturn.open.unwrap import user_dek
from tests.unit.keyturn.open.storage import API_KEY, KEK, KEY, PEPPER, PROJECT, made

OBJECT = made(0)
OTHER = made(0, key="other.pdf")


def test_the_dek_of_the_users_wrap() -> None:
    assert user_dek(OBJECT.metadata, KEK, project=PROJECT, object_key=KEY) == OBJECT.dek


@pytest.mark.parametrize(
    ("kek", "project", "key", "why"),
    [
        (user_kek(API_KEY, PROJECT), PROJECT, KEY, "another API key or pepper"),
        (user_kek("k" * 43, PROJECT, PEPPER), PROJECT, KEY, "another API key or pepper"),
        (KEK, "other", KEY, "not of this project and object key"),
        (KEK, PROJECT, "other.pdf", "not of this project and object key"),
    ],
)
def test_another_key_pepper_project_or_object_opens_no_wrap(
    kek: object, project: str, key: str, why: str
) -> None:
    with pytest.raises(NoUsableWrapError, match=why):
        user_dek(OBJECT.metadata, kek, project=project, object_key=key)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"enc-algo": None}, CorruptObjectError),
        ({"enc-dek-user": None}, CorruptObjectError),
        ({"enc-dek-user": "?"}, CorruptObjectError),
        ({"enc-kek-user": "0:0"}, CorruptObjectError),
        ({"enc-dek-user": OTHER.metadata["enc-dek-user"]}, NoUsableWrapError),
        ({"enc-kek-user": "2" + OBJECT.metadata["enc-kek-user"][1:]}, NoUsableWrapError),
        ({"enc-algo": "AES-256-GCM"}, NoUsableWrapError),
        ({"enc-algo": "AES-256-GCM", "enc-kek-user": None}, NoUsableWrapError),
        ({"enc-algo": "ROT13"}, UnknownAlgorithmError),
        ({"enc-algo": "deleted"}, NotFoundError),
        (dict.fromkeys(OBJECT.metadata), CorruptObjectError),
    ],
)
def test_metadata_of_anything_else_has_its_code(
    changes: dict[str, str | None], error: type[CodedError]
) -> None:
    metadata = {n: v for n, v in {**OBJECT.metadata, **changes}.items() if v is not None}
    with pytest.raises(error):
        user_dek(metadata, KEK, project=PROJECT, object_key=KEY)
