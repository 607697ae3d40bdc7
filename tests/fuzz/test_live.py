"""1,000 mutated messages to live workers, on a real broker and a real bucket (SPEC 6, 12).

`make fuzz` sends 5,000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fuzz.process import fuzzed

if TYPE_CHECKING:
    from pathlib import Path

    from tools.servers import S3Server

_COUNT = 1_000
_GOOD = _COUNT // 25

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]


def test_live(tmp_path: Path, vhost_url: str, ceph: S3Server) -> None:
    """Each ends stored or dead with its code; nothing is lost, left, shown or grown."""
    env = {
        "KEYTURN_AMQP_URL": vhost_url,
        "KEYTURN_S3_ENDPOINT_URL": ceph.endpoint_url,
        "KEYTURN_S3_REGION": ceph.region,
        "KEYTURN_S3_ACCESS_KEY_ID": ceph.access_key_id,
        "KEYTURN_S3_SECRET_ACCESS_KEY": ceph.secret_access_key,
    }
    report = fuzzed(tmp_path, "--only", "live", "--seed", "1", "--count", str(_COUNT), **env)
    outcomes = report.outcomes
    assert outcomes["served upload.stored"] > _GOOD
    assert {"malformed_request", "bad_signature", "bad_seal", "not_permitted"} <= set(outcomes)
    assert {"served project.enrolled", "served rotation.accepted"} <= set(outcomes)
    # What a broker itself refuses is never a worker's: a small part, or nothing is tried.
    assert outcomes["not taken by the broker"] < _COUNT / 20
    assert report.inputs > _COUNT
