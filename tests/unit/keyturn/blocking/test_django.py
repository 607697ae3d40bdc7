"""`keyturn.django`: a `FileField` and the admin on Keyturn."""

from __future__ import annotations

import html
import io
import pickle
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest

from keyturn.django import KeyturnStorage
from keyturn.errors import SettingsError
from tests.unit.keyturn.blocking import django_project
from tests.unit.keyturn.gateway.gateway import API_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.keyturn.blocking.memory_gateway import MemoryGateway

_AT = datetime(2026, 11, 24, 10, tzinfo=UTC)


@pytest.fixture
def storage(memory: MemoryGateway) -> Iterator[KeyturnStorage]:
    """The default storage of the project."""
    django_project.set_up()
    from django.core.files.storage import storages  # type: ignore[import-untyped]  # noqa: PLC0415
    from django.test import override_settings  # type: ignore[import-untyped]  # noqa: PLC0415

    with override_settings(STORAGES=django_project.storages(gateway=memory.url, api_key=API_KEY)):
        yield storages["default"]


def _file(body: bytes, name: str = "q3.txt") -> Any:
    from django.core.files.uploadedfile import (  # type: ignore[import-untyped]  # noqa: PLC0415
        SimpleUploadedFile,
    )

    return SimpleUploadedFile(name, body, "text/plain")


def _report(body: bytes, name: str = "q3.txt") -> Any:
    from tests.unit.keyturn.blocking.django_project.models import Report  # noqa: PLC0415

    return Report.objects.create(file=_file(body, name))


@pytest.mark.usefixtures("storage")
def test_the_admin_uploads_a_file_and_shows_a_link_to_it(memory: MemoryGateway) -> None:
    from django.contrib.auth.models import User  # type: ignore[import-untyped]  # noqa: PLC0415
    from django.test import Client  # noqa: PLC0415

    from tests.unit.keyturn.blocking.django_project.models import Report  # noqa: PLC0415

    admin = Client()
    admin.force_login(User.objects.create_superuser("kim"))
    added = admin.post("/admin/django_project/report/add/", {"file": _file(b"the body")})
    assert added.status_code == 302
    body, headers = memory.objects["media/reports/q3.txt"]
    assert (body, headers["Content-Type"]) == (b"the body", "text/plain")
    report = Report.objects.latest("id")
    page = admin.get(f"/admin/django_project/report/{report.id}/change/").content.decode()
    link = re.search(r'<a href="(http://127[^"]+)">reports/q3.txt</a>', page)
    assert link is not None
    with urlopen(html.unescape(link[1])) as answer:  # noqa: S310  # of the gateway in memory
        assert answer.read() == b"the body"


@pytest.mark.usefixtures("storage")
def test_a_file_is_read_as_any_other(memory: MemoryGateway) -> None:
    created = _report(b"line 1\nline 2\n")
    report = type(created).objects.get(id=created.id)
    memory.methods.clear()
    for _ in range(2):
        with report.file.open() as file:
            assert list(file) == [b"line 1\n", b"line 2\n"]
            assert file.open().read() == b"line 1\nline 2\n"
            file.seek(5)
            assert (file.read(1), file.size) == (b"1", 14)
            assert b"".join(file.chunks(4)) == b"line 1\nline 2\n"
    assert memory.methods.count("GET") == 2


@pytest.mark.usefixtures("storage")
def test_a_name_is_used_once_even_after_a_delete(memory: MemoryGateway) -> None:
    """The gateway alone knows which names were deleted, and says so when it refuses an upload."""
    first, second = _report(b"first"), _report(b"second")
    first.file.delete()
    third = _report(b"third", "q3.txt")
    assert re.fullmatch(r"reports/q3_\w{7}\.txt", second.file.name)
    assert re.fullmatch(r"reports/q3_\w{7}\.txt", third.file.name)
    assert memory.objects[f"media/{third.file.name}"][0] == b"third"
    gone = "n" * 28 + ".txt"  # with the folder, as long as the field allows
    _report(b"", gone).file.delete()
    longest = _report(b"fourth", gone)
    assert len(longest.file.name) == 40
    assert memory.objects[f"media/{longest.file.name}"][0] == b"fourth"


def test_what_cannot_be_read_twice_is_not_stored_in_part(storage: KeyturnStorage) -> None:
    class Once(io.BytesIO):
        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation("seek")

    storage.save("k", Once(b"first"))
    storage.delete("k")
    with pytest.raises(io.UnsupportedOperation):
        storage.save("k", Once(b"second"))
    assert not storage.exists("k")


def test_the_methods_of_a_storage(memory: MemoryGateway, storage: KeyturnStorage) -> None:
    from django.core.files.base import ContentFile  # type: ignore[import-untyped]  # noqa: PLC0415

    assert storage.save("a/b.txt", ContentFile("tëxt")) == "a/b.txt"
    assert memory.objects["media/a/b.txt"][0] == "tëxt".encode()
    assert storage.save(None, ContentFile(b"", name="c")) == "c"
    assert storage.listdir("") == (["a"], ["c"])
    assert (storage.size("a/b.txt"), storage.exists("a/b.txt")) == (5, True)
    assert storage.get_modified_time("c") == storage.get_created_time("c") == _AT
    assert "/objects/media/c?expires=" in storage.url("c")
    storage.delete("c")
    storage.delete("c")
    assert not storage.exists("c")
    for call in (storage.open, storage.size):
        with pytest.raises(FileNotFoundError):
            call("c")
    with pytest.raises(ValueError, match="without a name"):
        storage.url("")
    with storage.open("new", "wb") as file:
        file.write(b"written")
    assert memory.objects["media/new"][0] == b"written"


def test_the_api_key_is_in_no_migration_repr_or_pickle(storage: KeyturnStorage) -> None:
    from django.db import models  # type: ignore[import-untyped]  # noqa: PLC0415
    from django.db.migrations.writer import MigrationWriter  # type: ignore[import-untyped] # noqa: PLC0415

    written, _ = MigrationWriter.serialize(models.FileField(storage=storage))
    assert "keyturn.django.KeyturnStorage(" in written
    shown = [written, repr(storage), repr(vars(storage)), str(pickle.dumps(storage))]
    assert not [text for text in shown if API_KEY in text]


def test_a_missing_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEYTURN_GATEWAY_URL", raising=False)
    with pytest.raises(SettingsError, match="KEYTURN_GATEWAY_URL"):
        KeyturnStorage(project="acme", api_key=API_KEY)
