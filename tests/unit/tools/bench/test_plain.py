"""The bench's comparison with the plain pipeline, and its tenants: their arithmetic and sealing."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tools.bench import against_plain, plain, tenants
from tools.bench.__main__ import _arguments, _measurements


def test_the_parts_are_known_and_run_on_one_server() -> None:
    given = _arguments(["--only", "plain,latency,projects"])
    assert [name for name, _ in _measurements(given)] == [
        "plain on ceph",
        "latency on ceph",
        "projects on ceph",
    ]


def test_the_plain_worker_really_encrypts() -> None:
    kek = AESGCM(os.urandom(32))
    body, metadata = plain.sealed(kek, b"the plaintext", b"acme/k")
    assert b"the plaintext" not in body
    wrapped = base64.b64decode(metadata["dek"])
    data_key = kek.decrypt(wrapped[:12], wrapped[12:], b"acme/k")
    assert AESGCM(data_key).decrypt(body[:12], body[12:], b"acme/k") == b"the plaintext"
    with pytest.raises(InvalidTag):
        AESGCM(data_key).decrypt(body[:12], body[12:], b"acme/other")


def test_the_plain_workers_requests_are_what_it_reads() -> None:
    read = plain.Upload.model_validate(json.loads(plain.document("id", "acme", "k", b"\0\1")))
    assert (read.upload_id, read.project, read.key) == ("id", "acme", "k")
    assert base64.b64decode(read.body) == b"\0\1"


def test_percentiles_are_of_one_round() -> None:
    found = against_plain.Latencies()
    found.add([float(value) for value in range(101)])
    found.add([5.0, 5.0])
    assert found.p50 == [50.0, 5.0]
    assert found.p99 == [99.0, 5.0]


def test_a_slower_side_has_a_ratio_below_one() -> None:
    row = against_plain._row("ceph", 50, "p50", [20.0], [10.0])
    assert row.ratios is not None
    assert (row.ratios.values, row.met) == ((0.5,), False)
    assert against_plain._row("ceph", 50, "p50", [10.0], [10.0]).met


async def test_requests_are_published_at_the_requested_rate() -> None:
    letters = [against_plain.Letter(str(number), b"", {}) for number in range(20)]
    began = time.perf_counter()
    sent = [letter async for _, letter in against_plain.paced(letters, 200, began)]
    assert sent == letters
    assert time.perf_counter() - began >= 19 / 200


async def test_a_reader_that_lags_does_not_slow_the_publisher() -> None:
    letters = [against_plain.Letter(str(number), b"", {}) for number in range(10)]
    began = time.perf_counter() - 1
    async with asyncio.timeout(5):
        assert len([each async for each in against_plain.paced(letters, 10, began)]) == 10


def test_tenants_have_ids_of_their_own() -> None:
    assert len(set(tenants.names(10_000))) == 10_000
    assert tenants.names(2) == ["tenant-00000", "tenant-00001"]
