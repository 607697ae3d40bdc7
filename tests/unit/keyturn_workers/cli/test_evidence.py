"""`keyturn evidence`: what proves nothing is refused in one clear line (SPEC 15.1, 15.2)."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from keyturn.crypto import SigningKey, to_base64
from keyturn.evidence import parse
from keyturn_workers.cli.app import app
from keyturn_workers.core.storage_values import Headers
from tests.unit.keyturn.evidence.shared import FIRST_KEY, SECOND_KEY, chain_of, follow
from tests.unit.keyturn_workers.cli.fakes import use_bucket
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

CHAIN = chain_of(FIRST_KEY, FIRST_KEY, SECOND_KEY, SECOND_KEY)
KEYS = tuple(to_base64(key.public_bytes) for key in (SECOND_KEY, FIRST_KEY))  # current first
BOTH = {"EVENT_PUBLIC_KEY": ",".join(KEYS)}
NEWEST = parse(CHAIN[-1]).digest
_STRANGER = SigningKey.from_seed(bytes(range(2, 34)))


def _run(*arguments: str, **env: str) -> Result:
    named = {f"KEYTURN_{name}": value for name, value in env.items()}
    return CliRunner().invoke(app, ["evidence", *arguments], env=named)


def _forged() -> bytes:
    document = json.loads(CHAIN[1])
    document["signatures"][0]["sig"] = to_base64(bytes(64))
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """A bucket with the chain of `acme`, under names that sort in another order."""
    made = MemoryStorage()
    for number, envelope in enumerate(CHAIN):
        _plant(made, f"{9 - number}.json", envelope)

    use_bucket(monkeypatch, "evidence", made)
    return made


def _plant(storage: MemoryStorage, name: str, body: bytes) -> None:
    storage.plant(f".keyturn/evidence/acme/{name}", body, Headers({}))


def _in_bucket(*arguments: str, **env: str) -> Result:
    return _run(*arguments, S3_BUCKET="memory", **env)


def _write(folder: Path, *envelopes: bytes) -> list[str]:
    paths = []
    for number, envelope in enumerate(envelopes):
        path = folder / f"{number}.json"
        path.write_bytes(envelope)
        paths.append(str(path))
    return paths


# verify


def test_a_whole_chain_is_verified_offline_by_public_keys_alone(tmp_path: Path) -> None:
    result = _run("verify", *_write(tmp_path, *CHAIN), **BOTH)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.split()[-2] for line in lines[1:5]] == ["verified"] * 4
    assert lines[4].split()[-1] == NEWEST[:16]
    proves, does_not = lines.index("It proves:"), lines.index("It does not prove:")
    assert "was wrapped under generation 3" in lines[proves + 1]
    assert lines[does_not + 1].startswith("- That this is the newest evidence")


def test_the_keys_may_be_options_and_the_files_a_folder(tmp_path: Path) -> None:
    _write(tmp_path, *CHAIN)
    options = [option for key in KEYS for option in ("--public-key", key)]
    assert _run("verify", str(tmp_path), "--public-key", ",".join(KEYS)).exit_code == 0
    result = _run("verify", str(tmp_path), *options, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert (document["verified"], document["newest"], document["digest"]) == (True, None, NEWEST)
    assert (document["deployment"], document["project"]) == ("default", "acme")
    assert len(document["evidence"]) == 4
    assert document["proves"]
    assert document["does_not_prove"]


def test_the_newest_digest_shows_that_nothing_is_missing_at_the_end(tmp_path: Path) -> None:
    paths = _write(tmp_path, *CHAIN)
    result = _run("verify", *paths, "--newest", NEWEST.upper(), **BOTH)
    assert result.exit_code == 0
    assert "newest" not in result.stdout
    result = _run("verify", *paths[:-1], "--newest", NEWEST, **BOTH)
    assert result.exit_code == 1
    assert result.stderr == (
        "keyturn: evidence refused (cut): the chain does not end with the newest evidence\n"
    )


@pytest.mark.parametrize(
    ("envelopes", "kind", "index"),
    [
        pytest.param([CHAIN[0], _forged(), *CHAIN[2:]], "forged", 1, id="forged"),
        pytest.param(CHAIN[1:], "cut", 0, id="cut at the start"),
        pytest.param([CHAIN[0], *CHAIN[2:]], "cut", 1, id="cut inside"),
        pytest.param([CHAIN[1], CHAIN[0], *CHAIN[2:]], "reordered", 0, id="reordered"),
        pytest.param([*CHAIN, CHAIN[1]], "replayed", 4, id="replayed"),
        pytest.param([*CHAIN, follow(CHAIN[:2])], "replayed", 4, id="forked"),
        pytest.param([*CHAIN, follow(CHAIN, project="other")], "foreign", 4, id="foreign project"),
        pytest.param(
            [*CHAIN, follow(CHAIN, deployment="other")], "foreign", 4, id="foreign deployment"
        ),
        pytest.param([*CHAIN, b"{}"], "malformed", 4, id="malformed"),
    ],
)
def test_what_proves_nothing_is_refused_in_one_line(
    tmp_path: Path, envelopes: list[bytes], kind: str, index: int
) -> None:
    paths = _write(tmp_path, *envelopes)
    for arguments in (paths, [*paths, "--json"]):
        result = _run("verify", *arguments, **BOTH)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"keyturn: evidence refused ({kind}): {paths[index]}: ")
        assert result.stderr.count("\n") == 1


def test_a_key_that_is_not_given_verifies_nothing(tmp_path: Path) -> None:
    result = _run("verify", *_write(tmp_path, *CHAIN), "--public-key", KEYS[0])
    assert result.exit_code == 1
    assert result.stderr.startswith("keyturn: evidence refused (unknown key): ")


@pytest.mark.parametrize(
    ("arguments", "env"),
    [
        (("--project", "other"), {}),
        (("--deployment", "other"), {}),
        ((), {"DEPLOYMENT": "other"}),
    ],
)
def test_evidence_of_another_subject_than_asked_for_is_foreign(
    tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str]
) -> None:
    paths = _write(tmp_path, *CHAIN)
    result = _run("verify", *paths, *arguments, **BOTH, **env)
    assert result.exit_code == 1
    assert f"evidence refused (foreign): {paths[0]}: " in result.stderr
    named = ("--project", "acme", "--deployment", "default")
    assert _run("verify", *paths, *named, **BOTH, **env).exit_code == 0


def test_a_chain_that_a_retired_key_continued_is_refused(tmp_path: Path) -> None:
    """A thief of the old event key leaves out the file that retires it."""
    forged = [*CHAIN[:2], follow(CHAIN[:2], FIRST_KEY, generation=4)]
    paths = _write(tmp_path, *forged)
    for arguments in (paths, [*paths, "--any-order"]):
        result = _run("verify", *arguments, **BOTH)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"keyturn: evidence refused (retired key): {paths[0]}: ")
        assert "(--newest), which the keyring and the completion event name, or sweep" in (
            result.stderr
        )
    result = _run("verify", *paths, "--newest", NEWEST, **BOTH)
    assert "evidence refused (cut)" in result.stderr


def test_the_first_public_key_is_the_current_one(tmp_path: Path) -> None:
    paths = _write(tmp_path, *CHAIN)
    reversed_keys = ",".join(reversed(KEYS))
    assert "(retired key)" in _run("verify", *paths, EVENT_PUBLIC_KEY=reversed_keys).stderr
    options = ("--public-key", KEYS[0], "--public-key", KEYS[1])
    assert _run("verify", *paths, *options, EVENT_PUBLIC_KEY=reversed_keys).exit_code == 0
    newest = ("--newest", NEWEST)
    assert _run("verify", *paths, *newest, EVENT_PUBLIC_KEY=reversed_keys).exit_code == 0


def test_any_order_is_the_order_of_the_chain(tmp_path: Path) -> None:
    paths = _write(tmp_path, *reversed(CHAIN))
    assert _run("verify", *paths, **BOTH).exit_code == 1
    assert _run("verify", *paths, "--any-order", **BOTH).exit_code == 0
    result = _run("verify", *paths[1:], "--any-order", "--newest", NEWEST, **BOTH)
    assert "(cut)" in result.stderr


def test_an_empty_folder_is_no_evidence(tmp_path: Path) -> None:
    result = _run("verify", str(tmp_path), **BOTH)
    assert result.exit_code == 1
    assert "evidence refused (cut): there is no evidence: no file was found" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no public event key"),
        (("--public-key", "x"), "not the base64 of 32 bytes"),
        (("--project", "A"), "a project id has"),
        (("--deployment", "A"), "--deployment"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    result = _run("verify", *_write(tmp_path, *CHAIN), *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


# list


def test_the_list_is_in_the_order_of_the_chain(storage: MemoryStorage) -> None:
    result = _in_bucket("list", "acme", "--json", **BOTH)
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["digest"] for row in rows] == [parse(envelope).digest for envelope in CHAIN]
    assert {row["state"] for row in rows} == {"verified"}
    assert rows[0]["counts"]["objects"] == 7
    assert set(storage.calls) == {"list", "read"}


@pytest.mark.usefixtures("storage")
def test_without_public_keys_nothing_in_the_list_is_verified() -> None:
    result = _in_bucket("list", "acme")
    assert result.exit_code == 0
    assert result.stdout.count("not verified") == 4
    assert "nothing was verified: use --public-key" in result.stderr


@pytest.mark.parametrize(
    ("planted", "kind"), [(b"{}", "malformed"), (CHAIN[0], "replayed"), (_forged(), "forged")]
)
def test_what_a_bucket_writer_plants_is_shown_and_fails(
    storage: MemoryStorage, planted: bytes, kind: str
) -> None:
    _plant(storage, "planted.json", planted)
    result = _in_bucket("list", "acme", "--json", **BOTH)
    assert result.exit_code == 1
    assert f"evidence refused ({kind})" in result.stderr
    assert kind in [row["state"] for row in json.loads(result.stdout)]


@pytest.mark.parametrize("name", ["0-planted.json", "z-planted.json"])
@pytest.mark.parametrize(
    ("planted", "kind"),
    [
        pytest.param(follow([], project="other"), "foreign", id="first of another project"),
        pytest.param(follow(CHAIN[:1], project="other"), "foreign", id="between"),
        pytest.param(follow(CHAIN, project="other"), "foreign", id="after the last"),
        pytest.param(follow([], _STRANGER), "unknown_key", id="first of another deployment"),
        pytest.param(_forged(), "forged", id="forged"),
    ],
)
def test_foreign_evidence_comes_last_and_leaves_the_chain_verified(
    storage: MemoryStorage, tmp_path: Path, planted: bytes, kind: str, name: str
) -> None:
    """Otherwise anyone with write access to the bucket could hide that a genuine chain is whole."""
    _plant(storage, name, planted)
    listed = _in_bucket("list", "acme", "--json", **BOTH)
    assert (listed.exit_code, f": {name}: " in listed.stderr) == (1, True)
    rows = json.loads(listed.stdout)
    assert [row["state"] for row in rows] == [*["verified"] * 4, kind]
    shown = json.loads(_in_bucket("show", "acme", "--json", **BOTH).stdout)
    assert (shown["digest"], shown["state"]) == (NEWEST, "signature verified")
    exported = _in_bucket("export", "acme", str(tmp_path), **BOTH)
    paths = sorted(tmp_path.iterdir())
    assert [path.read_bytes() for path in paths[:4]] == CHAIN
    assert (exported.exit_code, len(paths)) == ((1, 4) if kind == "foreign" else (0, 5))
    assert (f"not evidence of acme, and not exported: {name}" in exported.stderr) == (
        len(paths) == 4
    )


@pytest.mark.usefixtures("storage")
def test_a_project_without_evidence_has_an_empty_list() -> None:
    result = _in_bucket("list", "other", "--json", **BOTH)
    assert (result.exit_code, json.loads(result.stdout)) == (0, [])
    assert "no evidence" in result.stderr


def test_files_that_no_current_signature_follows_are_unproven(storage: MemoryStorage) -> None:
    for number in (6, 7):  # those by the current key
        asyncio.run(storage.delete(f".keyturn/evidence/acme/{number}.json"))
    result = _in_bucket("list", "acme", "--json", **BOTH)
    assert result.exit_code == 1
    assert "evidence refused (retired key)" in result.stderr
    states = [row["state"] for row in json.loads(result.stdout)]
    assert states == ["retired_key", "unproven"]


# show


@pytest.mark.parametrize(("which", "index"), [((), 3), ((NEWEST[:12],), 3)])
@pytest.mark.usefixtures("storage")
def test_one_evidence_is_shown(which: tuple[str, ...], index: int) -> None:
    result = _in_bucket("show", "acme", *which, "--json", **BOTH)
    row = json.loads(result.stdout)
    assert row["digest"] == parse(CHAIN[index]).digest
    assert row["state"] == "signature verified"
    table = _in_bucket("show", "acme", *which)
    assert "noncurrent_stale" in table.stdout
    assert "not verified" in table.stdout


def test_a_file_is_shown_without_the_bucket(tmp_path: Path) -> None:
    (path,) = _write(tmp_path, CHAIN[1])
    row = json.loads(_run("show", "acme", path, "--json", **BOTH).stdout)
    assert row["digest"] == parse(CHAIN[1]).digest
    (path,) = _write(tmp_path, _forged())
    assert json.loads(_run("show", "acme", path, "--json", **BOTH).stdout)["state"] == "forged"
    (path,) = _write(tmp_path, b"{}")
    for project in ("acme", "other"):
        assert "is not evidence of" in _run("show", project, path).stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("acme", "f" * 64), 1, "not_found"),
        (("other",), 1, "not_found"),
        (("acme", "ab"), 2, "too short for a digest"),
    ],
)
@pytest.mark.usefixtures("storage")
def test_what_is_not_there_is_not_shown(arguments: tuple[str, ...], status: int, said: str) -> None:
    result = _in_bucket("show", *arguments)
    assert result.exit_code == status
    assert said in result.stderr


# export


@pytest.mark.usefixtures("storage")
def test_exported_files_are_verified_as_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "evidence"
    for _ in range(2):  # again into the same folder
        result = _in_bucket("export", "acme", str(folder), "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["files"] == sorted(path.name for path in folder.iterdir())
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == CHAIN
    assert _run("verify", str(folder), "--newest", NEWEST, **BOTH).exit_code == 0


@pytest.mark.usefixtures("storage")
def test_another_file_is_not_replaced(tmp_path: Path) -> None:
    sweep_id = parse(CHAIN[0]).proof.sweep_id
    (tmp_path / f"00001-3-{sweep_id}.json").write_text("precious")
    result = _in_bucket("export", "acme", str(tmp_path))
    assert result.exit_code == 1
    assert "already exists with different content" in result.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_name_in_the_bucket_is_never_a_path(storage: MemoryStorage, tmp_path: Path) -> None:
    _plant(storage, "../../outside.json", follow(CHAIN))
    _plant(storage, "../../rubbish.json", b"{}")
    folder = tmp_path / "a" / "b" / "c"
    result = _in_bucket("export", "acme", str(folder))
    assert result.exit_code == 1
    assert "not evidence of acme, and not exported: ../../rubbish.json" in result.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert {path.parent for path in files} == {folder}


@pytest.mark.usefixtures("storage")
def test_no_evidence_makes_no_folder(tmp_path: Path) -> None:
    result = _in_bucket("export", "other", str(tmp_path / "new"))
    assert result.exit_code == 1
    assert "not_found" in result.stderr
    assert list(tmp_path.iterdir()) == []
