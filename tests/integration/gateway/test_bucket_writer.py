"""A writer of the bucket against a reader of the gateway (SPEC 3.1, 5.4, 9.2, 13).

Whatever is done to a body, its metadata or a keyring: every byte that comes is the right one,
and an answer that is not whole is never one that looks whole, to a plain socket and to a
client that relies on `Content-Length` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import pytest

from keyturn.crypto import admin_kek, seal_tombstone, to_base64
from keyturn.identifiers import keyring_s3_key, object_s3_key
from tests.integration.gateway.scene import CHUNK, HEADER, OTHER_KEY, SEALED_CHUNK, plain
from tools.harness.http import object_target

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.gateway.scene import Scene
    from tools.harness.http import Response

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

GATEWAY_ENV = {"KEYRING_CACHE_S": "0"}
# Each byte and each length is harmed in the unit tests of the reader.
_SIZES = (0, CHUNK, 5 * CHUNK + 1, 1024 * 1024 + 3)


def _flipped(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def _chunk_of(at: int) -> int:
    """The chunk that contains a byte of a body; the header precedes all chunks."""
    return -1 if at < HEADER else (at - HEADER) // SEALED_CHUNK


def _last(body: bytes) -> int:
    return (len(body) - HEADER) // SEALED_CHUNK


# What is done to a body.
_HARMS: dict[str, Callable[[bytes], bytes]] = {
    "a bit of the salt": lambda body: _flipped(body, 0),
    "a bit of the commitment": lambda body: _flipped(body, HEADER - 1),
    "a bit of the first chunk": lambda body: _flipped(body, HEADER),
    "a bit of a middle chunk": lambda body: _flipped(body, (HEADER + len(body)) // 2),
    "the last tag's last bit": lambda body: _flipped(body, len(body) - 1),
    "nothing left": lambda _: b"",
    "cut inside the header": lambda body: body[:40],
    "cut behind the header": lambda body: body[:HEADER],
    "cut down to an empty one": lambda body: body[: HEADER + 16],
    "cut inside the first chunk": lambda body: body[: HEADER + 20],
    "cut by a byte": lambda body: body[:-1],
    "cut by a tag": lambda body: body[:-16],
    "cut at the last chunk's border": lambda body: body[: HEADER + _last(body) * SEALED_CHUNK],
    "cut in the middle": lambda body: body[: (HEADER + len(body)) // 2],
    "a byte more": lambda body: body + b"\0",
    "a tag more": lambda body: body + bytes(16),
    "a chunk more": lambda body: body + bytes(SEALED_CHUNK),
    "itself twice": lambda body: body + body[HEADER:],
}


def _first_wrong(harmed: bytes, body: bytes) -> int:
    """The first chunk that cannot open, of a body that its length divides into chunks."""
    same = next(
        (at for at, pair in enumerate(zip(harmed, body, strict=False)) if pair[0] != pair[1]),
        min(len(harmed), len(body)),
    )
    return _chunk_of(same)


def _never_wrong(answer: Response, plaintext: bytes) -> None:
    """Not whole, not ended in order, and no byte that is not the right one."""
    if answer.status in (200, 206):
        assert answer.end == "reset"
        assert len(answer.body) < len(plaintext)
        assert plaintext.startswith(answer.body)
    else:
        assert (answer.status, answer.end) == (502, "clean")
        assert answer.code in ("corrupt_object", "no_usable_wrap")
        assert b"canary" not in answer.body


_BLANK = {size: bytes(HEADER + size + 16 * (size // CHUNK + 1)) for size in _SIZES}


@pytest.mark.parametrize(
    ("harm", "size_bytes"),
    [(n, size) for n in _HARMS for size in _SIZES if _HARMS[n](_BLANK[size]) != _BLANK[size]],
)
async def test_a_harmed_body(scene: Scene, harm: str, size_bytes: int) -> None:
    """GET of all, HEAD, and a range of each region, of a body that an attacker changed."""
    plaintext = plain(size_bytes)
    made = scene.bucket.made("acme", "harmed", plaintext)
    harmed = _HARMS[harm](made.body)
    scene.replace(made, body=harmed)

    full = await scene.client.request("acme", "harmed")
    _never_wrong(full, plaintext)
    wrong = _first_wrong(harmed, made.body)
    if wrong <= 15:
        # The first piece is authenticated before the answer begins (SPEC 9.2).
        assert (full.status, full.code) == (502, "corrupt_object")

    lengthened_or_last = len(harmed) != len(made.body) or wrong in (-1, _last(made.body))
    head = await scene.client.request("acme", "harmed", method="HEAD")
    assert head.status == (502 if lengthened_or_last else 200)
    middle = size_bytes // 2
    for first, last in {(0, 0), (middle, middle + CHUNK), (max(size_bytes - 1, 0), size_bytes)}:
        ranged = await scene.client.request("acme", "harmed", {"Range": f"bytes={first}-{last}"})
        if ranged.status == 206 and ranged.end == "clean":
            assert ranged.body == plaintext[first : last + 1]
            assert not lengthened_or_last
            assert not first // CHUNK <= wrong <= last // CHUNK
        elif ranged.status == 206:
            assert ranged.end == "reset"
            assert plaintext[first:].startswith(ranged.body)
        else:
            assert ranged.status in ((502, 416) if size_bytes == 0 else (502,))
            assert ranged.status != 416 or not lengthened_or_last


@pytest.mark.parametrize("size_bytes", [CHUNK, 5 * CHUNK, 64 * CHUNK])
async def test_an_empty_last_chunk_is_requested_too(scene: Scene, size_bytes: int) -> None:
    """Of a plaintext of whole chunks the last seal adds no byte, and is not passed over."""
    plaintext = plain(size_bytes)
    made = scene.bucket.made("acme", "multiple", plaintext)
    scene.replace(made, body=_flipped(made.body, len(made.body) - 1))
    _never_wrong(await scene.client.request("acme", "multiple"), plaintext)
    # Every requested byte is authenticated; the reported length is not.
    first = await scene.client.request("acme", "multiple", {"Range": "bytes=0-0"})
    assert (first.status, first.code) == (502, "corrupt_object")
    beyond = await scene.client.request("acme", "multiple", {"Range": f"bytes={size_bytes}-"})
    assert (beyond.status, beyond.code) == (502, "corrupt_object")
    seen = await scene.client.request("acme", "multiple", {"If-None-Match": '"x"'})
    _never_wrong(seen, plaintext)


async def test_a_client_that_counts_bytes_notices(scene: Scene) -> None:
    """aiohttp, like any client of HTTP, reports an answer that is cut as an error."""
    plaintext = plain(4 * 1024 * 1024)
    made = scene.bucket.made("acme", "long", plaintext)
    scene.replace(made, body=_flipped(made.body, len(made.body) - 1))
    got = bytearray()
    headers = {"Authorization": f"Bearer {scene.deployment.api_key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(scene.process.url + object_target("acme", "long")) as answer,
    ):
        assert answer.status == 200

        async def read() -> None:
            async for piece in answer.content.iter_any():
                got.extend(piece)

        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
            await read()
    assert len(got) < len(plaintext)
    assert plaintext.startswith(bytes(got))
    await scene.process.logged("response aborted")


async def test_swapped_chunks(scene: Scene) -> None:
    plaintext = plain(5 * CHUNK)
    made = scene.bucket.made("acme", "swapped", plaintext)
    chunks = [
        made.body[at : at + SEALED_CHUNK] for at in range(HEADER, len(made.body), SEALED_CHUNK)
    ]
    chunks[1], chunks[2] = chunks[2], chunks[1]
    scene.replace(made, body=made.body[:HEADER] + b"".join(chunks))
    _never_wrong(await scene.client.request("acme", "swapped"), plaintext)


async def test_a_body_of_another_object(scene: Scene) -> None:
    """Two good objects of one project, the body of one under the metadata of the other."""
    one, two = scene.bucket.made("acme", "one", plain(99)), scene.put("two", plain(98, seed=2))
    scene.replace(one, body=two.body)
    answer = await scene.client.request("acme", "one")
    assert (answer.status, answer.code) == (502, "corrupt_object")


_METADATA: dict[str, tuple[Callable[[dict[str, str]], dict[str, str]], int, str]] = {
    "all of it gone": (lambda _: {}, 502, "corrupt_object"),
    "all but the upload's id": (lambda _: {"enc-upload": "x"}, 502, "corrupt_object"),
    "no enc-algo": (lambda m: _without(m, "enc-algo"), 502, "corrupt_object"),
    "no user wrap": (lambda m: _without(m, "enc-dek-user"), 502, "corrupt_object"),
    "no admin wrap": (lambda m: _without(m, "enc-dek-admin"), 502, "corrupt_object"),
    "no label of the user KEK": (lambda m: _without(m, "enc-kek-user"), 502, "corrupt_object"),
    "no label of the master key": (lambda m: _without(m, "enc-kek-admin"), 200, ""),
    "a false label of the master key": (lambda m: m | {"enc-kek-admin": "nobody"}, 200, ""),
    "a false KEK id": (lambda m: m | {"enc-kek-user": "1:" + "0" * 16}, 200, ""),
    "wraps swapped": (
        lambda m: m | {"enc-dek-user": m["enc-dek-admin"], "enc-dek-admin": m["enc-dek-user"]},
        502,
        "no_usable_wrap",
    ),
    "the admin wrap twice": (
        lambda m: m | {"enc-dek-user": m["enc-dek-admin"]},
        502,
        "wraps_disagree",
    ),
    "a damaged user wrap": (
        lambda m: m | {"enc-dek-user": "A" * 138 + "=="},
        502,
        "wraps_disagree",
    ),
    "an unknown name": (lambda m: m | {"enc-dek-user-1": m["enc-dek-user"]}, 200, ""),
    "the user wrap twice": (lambda m: m | {"enc-dek-admin": m["enc-dek-user"]}, 200, ""),
    "a later generation claimed": (
        lambda m: m | {"enc-kek-user": m["enc-kek-user"].replace("1:", "2:", 1)},
        502,
        "no_usable_wrap",
    ),
    "another algorithm": (lambda m: m | {"enc-algo": "ROT13"}, 502, "unknown_algorithm"),
    "an algorithm in lower case": (
        lambda m: m | {"enc-algo": "cobblestone-256"},
        502,
        "unknown_algorithm",
    ),
    "called deleted": (lambda m: m | {"enc-algo": "deleted"}, 404, "not_found"),
    "a wrap that is no base64": (
        lambda m: m | {"enc-dek-user": "!" + m["enc-dek-user"][1:]},
        502,
        "corrupt_object",
    ),
    "a wrap cut short": (
        lambda m: m | {"enc-dek-user": m["enc-dek-user"][:40], "enc-dek-admin": "AAAA"},
        502,
        "no_usable_wrap",
    ),
}


def _without(metadata: dict[str, str], name: str) -> dict[str, str]:
    return {n: value for n, value in metadata.items() if n != name}


@pytest.mark.parametrize("what", _METADATA)
async def test_changed_metadata(scene: Scene, what: str) -> None:
    """Labels are hints; whatever opens is the right plaintext, and the rest an error."""
    change, status, code = _METADATA[what]
    plaintext = plain(3 * CHUNK)
    made = scene.bucket.made("acme", "meta", plaintext)
    scene.replace(made, metadata=change(made.metadata))
    for method, headers in (("GET", {}), ("GET", {"Range": "bytes=5-9"}), ("HEAD", {})):
        answer = await scene.client.request("acme", "meta", headers, method=method)
        if status == 200:
            assert answer.status == (206 if headers else 200)
            assert answer.body == (
                b"" if method == "HEAD" else plaintext[5:10] if headers else plaintext
            )
        else:
            assert answer.status == status
            if method == "GET":
                assert answer.code == code


@pytest.mark.parametrize("where", ["acme/elsewhere", "other/moved", "other/elsewhere"])
async def test_an_object_moved_elsewhere(scene: Scene, where: str) -> None:
    """Copied with all of its metadata; no reader of the place it went to opens it."""
    scene.put("moved", plain(10))
    scene.bucket.client.copy_object(
        Bucket=scene.deployment.bucket,
        Key=where,
        CopySource={"Bucket": scene.deployment.bucket, "Key": "acme/moved"},
    )
    project, _, key = where.partition("/")
    token = scene.deployment.api_key if project == "acme" else OTHER_KEY
    answer = await scene.client.request(project, key, token=token)
    assert (answer.status, answer.code) == (502, "no_usable_wrap")


async def test_a_tombstone_is_not_found(scene: Scene) -> None:
    """One that opens and one that does not, with or without a body: readers see no object."""
    kek = admin_kek(scene.deployment.master_key, "acme")
    true = to_base64(seal_tombstone(kek, "acme", "dead", "2026-11-24T10:00:00.000000Z"))
    for sealed, body in (
        (true, b""),
        (to_base64(b"x" * 80), b""),
        (true, b"a body all the same"),
    ):
        metadata = {"enc-algo": "deleted", "enc-dek-admin": sealed}
        scene.bucket.put("acme/dead", body, metadata)
        for headers in ({}, {"Range": "bytes=0-0"}, {"If-None-Match": "*"}):
            answer = await scene.client.request("acme", "dead", headers)
            assert (answer.status, answer.code) == (404, "not_found")


@dataclass(frozen=True)
class _Ring:
    """What is done to a project's keyring, and what its reader gets."""

    do: Callable[[Scene, str], None]
    status: int
    code: str


def _forged(scene: Scene, project: str) -> None:
    """The attacker's own API key, sealed under a master key of the attacker's own."""
    scene.bucket.put_keyring(project, _ATTACKER)
    holds = scene.bucket.keyring(project)
    scene.bucket.put_record(keyring_s3_key(project), project, holds, ("m1", b"f" * 32))


def _moved(scene: Scene, project: str) -> None:
    """The keyring of a project whose API key the attacker holds, and the same relabeled."""
    scene.bucket.put_keyring("attacker", _ATTACKER)
    body, _ = scene.bucket.get(keyring_s3_key("attacker"))
    scene.bucket.put(keyring_s3_key(project), body, {})


def _moved_and_relabeled(scene: Scene, project: str) -> None:
    scene.bucket.put_keyring("attacker", _ATTACKER)
    body, _ = scene.bucket.get(keyring_s3_key("attacker"))
    name = f'"project": "{project}"'.encode()
    scene.bucket.put(keyring_s3_key(project), body.replace(b'"project": "attacker"', name), {})


def _of_a_master_key_unknown(scene: Scene, project: str) -> None:
    holds = scene.bucket.keyring(project)
    scene.bucket.put_record(keyring_s3_key(project), project, holds, ("m9", b"9" * 32))


def _rolled_back(scene: Scene, project: str) -> None:
    """Back to the generation before that of its objects, with the API key of then."""
    scene.bucket.put_keyring(project, _ATTACKER)


_ATTACKER = "attacker-" + "a" * 34
_RINGS = {
    "forged": _Ring(_forged, 502, "corrupt_object"),
    "moved": _Ring(_moved, 502, "corrupt_object"),
    "moved and relabeled": _Ring(_moved_and_relabeled, 502, "corrupt_object"),
    "no JSON": _Ring(lambda s, p: s.bucket.put(keyring_s3_key(p), b"{", {}), 502, "corrupt_object"),
    "empty": _Ring(lambda s, p: s.bucket.put(keyring_s3_key(p), b"", {}), 502, "corrupt_object"),
    "of an unknown master key": _Ring(_of_a_master_key_unknown, 503, "unknown_master_key"),
    "deleted": _Ring(lambda s, p: s.bucket.delete(keyring_s3_key(p)), 401, "unauthorized"),
    "rolled back": _Ring(_rolled_back, 503, "keyring_rolled_back"),
}


@pytest.mark.parametrize("what", _RINGS)
async def test_a_keyring_that_an_attacker_changed(scene: Scene, what: str) -> None:
    """A forged one admits no caller, and one that is older than its objects stops all."""
    ring, project = _RINGS[what], f"ring-{what.replace(' ', '-')}".lower()
    old, current = _ATTACKER, scene.deployment.api_key
    scene.bucket.put_keyring(project, old, current)
    made = scene.bucket.made(project, "x", plain(100), generation=2)
    scene.bucket.put_made(project, made)
    assert (await scene.client.request(project, "x")).body == plain(100)
    assert (await scene.client.request(project, "x", token=old)).status == 401
    ring.do(scene, project)
    for api_key in (old, current):
        for headers in ({}, {"Range": "bytes=0-9"}, {"If-None-Match": '"x"'}):
            answer = await scene.client.request(project, "x", headers, token=api_key)
            assert b"canary" not in answer.body
            if what == "rolled back" and api_key == current:
                assert answer.status == 401
            else:
                assert (answer.status, answer.code) == (ring.status, ring.code)


async def test_a_keyring_that_was_put_back_and_rotated_to_another_key(scene: Scene) -> None:
    """Its new key reads nothing that the owner stored under the generation that it makes anew."""
    owner = scene.deployment.api_key
    scene.bucket.put_keyring("forked", _ATTACKER, owner)
    scene.bucket.put_made("forked", scene.bucket.made("forked", "x", plain(100), generation=2))
    thief = "thief-" + "k" * 40
    scene.bucket.put_keyring("forked", _ATTACKER, thief)
    for method, headers in (("GET", {}), ("GET", {"Range": "bytes=5-9"}), ("HEAD", {})):
        answer = await scene.client.request("forked", "x", headers, method=method, token=thief)
        assert answer.status == 502
        assert method == "HEAD" or answer.code == "wraps_disagree"


async def test_an_object_of_the_old_generation_opens_by_the_admin_wrap(scene: Scene) -> None:
    """Until it is swept; its user wrap, under the retired key, opens nothing by itself."""
    old, current = "old-" + "k" * 40, scene.deployment.api_key
    scene.bucket.put_keyring("turned", old, current)
    made = scene.bucket.made("turned", "x", plain(100), generation=1, api_key=old)
    scene.bucket.put_made("turned", made)
    assert (await scene.client.request("turned", "x")).body == plain(100)
    assert (await scene.client.request("turned", "x", token=old)).status == 401
    # The holder of the retired key and of the bucket puts an own object at an old generation.
    del made.metadata["enc-dek-admin"]
    made.metadata["enc-dek-admin"] = made.metadata["enc-dek-user"]
    scene.bucket.put_made("turned", made)
    answer = await scene.client.request("turned", "x")
    assert (answer.status, answer.code) == (502, "no_usable_wrap")


async def test_two_views_of_one_object(scene: Scene) -> None:
    """Wraps that both open, to different DEKs: the user's is opened, and only if it fits."""
    made, second = (scene.bucket.made("acme", "views", plain(10, seed)) for seed in (0, 1))
    mixed = made.metadata | {"enc-dek-user": second.metadata["enc-dek-user"]}
    scene.replace(made, metadata=mixed)
    answer = await scene.client.request("acme", "views")
    assert (answer.status, answer.code) == (502, "corrupt_object")


async def test_plaintext_where_it_is_forbidden(scene: Scene) -> None:
    scene.bucket.put(object_s3_key("acme", "bare"), b"planted", {"author": "kim"})
    for headers in ({}, {"Range": "bytes=0-0"}, {"If-None-Match": "*"}):
        answer = await scene.client.request("acme", "bare", headers)
        assert (answer.status, answer.code) == (502, "corrupt_object")
