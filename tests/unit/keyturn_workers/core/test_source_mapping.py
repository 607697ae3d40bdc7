"""Sources: what the setting may say, and where the objects of a source go (SPEC 17.1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.errors import SettingsError
from keyturn.identifiers import is_object_key, is_project
from keyturn.settings import S3Settings
from keyturn_workers.core.source_mapping import Source, Target, parse_sources
from keyturn_workers.process.settings import SourceSettings

_DROP = {"bucket": "acme-drop", "prefix": "in/", "project": "acme", "key": "{name}"}
_FOLDERS = {"bucket": "acme-drop", "project": "{first}", "key": "{rest}"}
_OWN = S3Settings(
    s3_endpoint_url="https://s3.example:9000",
    s3_region="eu-1",
    s3_bucket="own-bucket",
    s3_access_key_id="own-id",
    s3_secret_access_key="own-secret",
    s3_ca_file=Path("ca.pem"),
    s3_cert_file=Path("cert.pem"),
    s3_key_file=Path("key.pem"),
)


def _source(**fields: Any) -> Source:
    return parse_sources({"drop": {**_DROP, **fields}})["drop"]


@pytest.mark.parametrize(
    ("fields", "s3_key", "target"),
    [
        (_DROP, "in/a/b.txt", Target("acme", "a/b.txt")),
        (_DROP, "in/{first} %41+ü", Target("acme", "{first} %41+ü")),
        (_DROP, "in/" + "x" * 900, Target("acme", "x" * 900)),
        (_DROP, "in/" + "x" * 901, None),
        (_DROP, "in/", None),
        (_DROP, "in/../x", None),
        (_DROP, "in/.keyturn/staging/api/x", None),
        (_DROP, "in/.keyturn", Target("acme", ".keyturn")),
        (_DROP, "in/a/.keyturn/x", Target("acme", "a/.keyturn/x")),
        (_DROP, "in/a//b", None),
        ({**_FOLDERS, "project": "acme"}, "x/../b", None),
        ({**_FOLDERS, "project": "acme"}, "../b", None),
        ({**_FOLDERS, "project": "acme"}, "./.keyturn/b", None),
        ({**_FOLDERS, "project": "acme"}, "/b", None),
        (_DROP, "in/a\x07", None),
        (_DROP, "in/\ud800", None),
        (_DROP, "out/a", None),
        (_DROP, "IN/a", None),
        (_FOLDERS, "acme/a/b", Target("acme", "a/b")),
        (_FOLDERS, "acme", None),
        (_FOLDERS, "acme/", None),
        (_FOLDERS, ".keyturn/keyrings/acme.json", None),
        ({**_FOLDERS, "project": "acme"}, ".keyturn/x", None),
        (_FOLDERS, "Acme/a", None),
        (_FOLDERS, "*/a", None),
        (
            {**_FOLDERS, "project": "eu-{first}", "key": "in/{name}"},
            "a/b",
            Target("eu-a", "in/a/b"),
        ),
        ({**_FOLDERS, "project": "{first}-{rest}"}, "a/b", Target("a-b", "b")),
    ],
)
def test_a_source_maps_each_of_its_keys_to_one_place(
    fields: dict[str, Any], s3_key: str, target: Target | None
) -> None:
    assert parse_sources({"drop": fields})["drop"].target(s3_key) == target


_TEMPLATES = st.lists(
    st.sampled_from(["{name}", "{first}", "{rest}", "a", "-", "/", ".", ".keyturn/", "ü"]),
    max_size=4,
).map("".join)
_S3_KEYS = st.lists(
    st.one_of(st.sampled_from(["/", "..", ".", "a", "{name}", ".keyturn", "\x00"]), st.text()),
    max_size=6,
).map("".join)


@given(_TEMPLATES, _TEMPLATES, st.sampled_from(["", "in/"]), _S3_KEYS)
def test_no_name_leads_out_of_the_projects(
    project: str, key: str, prefix: str, s3_key: str
) -> None:
    """Whatever a writer into the source names its objects, and whatever the templates are."""
    source = Source.model_construct(bucket="drop", prefix=prefix, project=project, key=key)
    target = source.target(s3_key)
    if target is not None:
        assert s3_key.startswith(prefix)
        assert is_project(target.project)
        assert is_object_key(target.object_key)


@given(_S3_KEYS, _S3_KEYS)
def test_folders_of_customers_do_not_meet(one: str, other: str) -> None:
    source = parse_sources({"drop": _FOLDERS})["drop"]
    if one != other and source.target(one) is not None:
        assert source.target(one) != source.target(other)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("{", "not a JSON object"),
        ('{"drop": {}, "drop": {}}', "duplicate name in an object"),
        # Of four problems, the one that explains the others is not left out.
        ({"drop": {"projct": "a", "watch": 1, "delete": 2}}, "projct: Extra inputs"),
        ("[]", "cannot be read"),
        ("/no/such/file", "the file cannot be read (No such file or directory)"),
        ({"Drop": _DROP}, "1 to 32 characters"),
        ({"drop": {}}, "source drop: bucket: Field required"),
        ({"drop": []}, "source drop: "),
        ({"drop": {**_DROP, "prefixes": []}}, "source drop: prefixes: Extra inputs"),
        ({"drop": {**_DROP, "bucket": "ab"}}, "source drop: bucket: "),
        ({"drop": {**_DROP, "prefix": "a\n"}}, "source drop: prefix: it must not have control"),
        (
            {"drop": {**_DROP, "key": "{key}/{name}"}},
            "source drop: key: only {name}, {first} and {rest} are",
        ),
        ({"drop": {**_DROP, "key": "{name"}}, "source drop: key: it needs"),
        (
            {"drop": {**_DROP, "key": "{name!r}{name}"}},
            "source drop: key: only {name}, {first} and {rest} are",
        ),
        ({"drop": {**_DROP, "key": "{first}"}}, "source drop: key: it needs"),
        (
            {"drop": {**_DROP, "project": "{canary}"}},
            "source drop: project: only {name}, {first} and {rest} are",
        ),
        (
            {"drop": {**_DROP, "delete": "canary"}},
            'source drop: delete: it must be true, false or "unc',
        ),
        ({"drop": {**_DROP, "delete": 1}}, 'source drop: delete: it must be true, false or "unc'),
        ({"drop": {**_DROP, "watch": "canary"}}, "source drop: watch"),
        ({"drop": {**_DROP, "endpoint_url": "ftp://canary"}}, "source drop: endpoint_url"),
        ({"drop": {**_DROP, "access_key_id": "canary"}}, "must be set together"),
        ({"drop": {**_DROP, "secret_access_key_file": "canary"}}, "must be set together"),
        (
            {
                "drop": {
                    **_DROP,
                    "access_key_id": "canary",
                    "secret_access_key": "canary",
                    "secret_access_key_file": "canary",
                }
            },
            "must be set together, each once",
        ),
    ],
)
def test_what_is_wrong_with_a_source_is_said_without_its_values(value: object, why: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # `why` is in its text
        parse_sources(value)
    text = str(refused.value)
    assert why in text
    assert "\n" not in text
    assert "canary" not in text.removeprefix(
        "source drop: project: only {name}, {first} and {rest} are"
    )


def test_the_setting_may_be_the_path_of_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KEYTURN_S3_BUCKET", "own-bucket")
    assert SourceSettings.read().sources == {}
    for text in (json.dumps({"drop": _DROP}), f"'{json.dumps({'drop': _DROP})}'"):
        monkeypatch.setenv("KEYTURN_SOURCES", text)
        assert SourceSettings.read().sources == {"drop": _source()}
    file = tmp_path / "sources.json"
    file.write_text(json.dumps({"drop": {**_DROP, "delete": "unconditional", "watch": False}}))
    monkeypatch.setenv("KEYTURN_SOURCES", f"{file}\n")
    source = SourceSettings.read().sources["drop"]
    assert (source.delete, source.watch) == ("unconditional", False)


def test_keyturns_own_bucket_is_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start check finds it under other names; this finds the mistake at once."""
    monkeypatch.setenv("KEYTURN_S3_BUCKET", "acme-drop")
    monkeypatch.setenv("KEYTURN_S3_ENDPOINT_URL", "https://s3.example/")
    for other in ({"bucket": "acme-drop-2"}, {"endpoint_url": "https://s3.other"}):
        monkeypatch.setenv("KEYTURN_SOURCES", json.dumps({"drop": {**_DROP, **other}}))
        assert SourceSettings.read().sources
    for same in ({}, {"endpoint_url": "https://S3.example"}):
        monkeypatch.setenv("KEYTURN_SOURCES", json.dumps({"drop": {**_DROP, **same}}))
        with pytest.raises(SettingsError, match="source drop is the bucket of KEYTURN_S3_BUCKET"):
            SourceSettings.read()


def test_what_a_source_does_not_name_is_as_for_keyturns_bucket() -> None:
    settings = _source().storage_settings(_OWN)
    assert settings == _OWN.model_copy(update={"s3_bucket": "acme-drop"})


def test_a_source_elsewhere_never_sees_our_client_certificate(tmp_path: Path) -> None:
    key_id, secret = tmp_path / "id", tmp_path / "secret"
    key_id.write_text("their-id\n")
    secret.write_text("their-secret\n")
    for endpoint, ca_file in (("https://s3.other", _OWN.s3_ca_file), ("http://s3.other", None)):
        settings = _source(
            endpoint_url=endpoint,
            region="us-2",
            access_key_id_file=str(key_id),
            secret_access_key_file=str(secret),
        ).storage_settings(_OWN)
        assert settings.s3_endpoint_url == endpoint
        assert settings.s3_region == "us-2"
        assert settings.s3_access_key_id == "their-id"
        assert settings.s3_secret_access_key is not None
        assert settings.s3_secret_access_key.get_secret_value() == "their-secret"
        assert (settings.s3_ca_file, settings.s3_cert_file, settings.s3_key_file) == (
            ca_file,
            None,
            None,
        )


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff"])
def test_a_file_of_credentials_that_cannot_be_used_is_named(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    source = _source(access_key_id="id", secret_access_key_file=str(file))
    with pytest.raises(ValueError, match="a credentials file"):
        source.storage_settings(_OWN)


def test_no_secret_of_a_source_is_printed() -> None:
    source = _source(access_key_id="id", secret_access_key="canary")
    assert "canary" not in repr(source)
    assert "canary" not in repr(source.storage_settings(_OWN))
