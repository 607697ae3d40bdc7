"""The bench's own arithmetic: a wrong sum there would be believed (SPEC 3, 7)."""

from __future__ import annotations

import json

import pytest

from keyturn.crypto import open_sealed, sealed_size
from tools.bench.figures import (
    Results,
    Row,
    Spread,
    higher_is_better,
    lower_is_better,
    number,
    profile_table,
    table,
)
from tools.bench.large_upload import SealedFile
from tools.bench.layers import WAITING, Sampled, layer_of, shares
from tools.bench.sealing import openssl_speed
from tools.bench.uploads import Rate, Rounds, Sample, rows, steady


def _row(ratio: float, **aim: float) -> Row:
    return Row("f", "ceph", "x/s", Spread((ratio,)), Spread((1.0,)), "b", Spread((ratio,)), **aim)


def test_a_spread_shows_its_median_and_range() -> None:
    spread = Spread((3.0, 1.0, 2.0))
    assert spread.median == 2.0
    assert spread.as_json() == {"min": 1.0, "median": 2.0, "max": 3.0, "rounds": [3.0, 1.0, 2.0]}
    assert "1" in spread.shown()
    assert "3" in spread.shown()


def test_no_rounds_are_no_figure() -> None:
    with pytest.raises(ValueError, match="no rounds"):
        Spread(())


def test_a_ratio_above_one_always_means_that_ours_is_better() -> None:
    assert higher_is_better([200.0], [100.0]).values == (2.0,)
    assert lower_is_better([1.0], [2.0]).values == (2.0,)


def test_rounds_are_compared_one_by_one() -> None:
    with pytest.raises(ValueError, match="zip"):
        higher_is_better([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (_row(0.65, at_least=0.65), True),
        (_row(0.64, at_least=0.65), False),
        (_row(0.5), None),
        (Row("memory", "ceph", "MiB", Spread((129.0,)), at_most=128), False),
        (Row("memory", "ceph", "MiB", Spread((128.0,)), at_most=128), True),
    ],
)
def test_a_miss_is_a_miss(row: Row, met: bool | None) -> None:
    assert row.met is met
    assert row.as_json()["met"] is met


def test_the_table_and_the_json_hold_every_row() -> None:
    missed = _row(0.1, at_least=0.65)
    results = Results([missed, _row(1.0)], {"ceph": {"crypto": 1.0}}, ["a note"])
    document = json.loads(results.as_json())
    assert [row["met"] for row in document["rows"]] == [False, None]
    assert document["notes"] == ["a note"]
    assert "NO" in "".join(str(cell) for cell in table(results.rows).columns[6].cells)


def test_numbers_are_short() -> None:
    assert [number(n) for n in (12345.6, 99.94, 0.12345)] == ["12,346", "99.9", "0.123"]


def test_start_and_end_of_a_round_do_not_count() -> None:
    samples = [
        Sample(0.0, 1000, 5.0),
        Sample(1.0, 1000, 6.0),  # still starting
        Sample(2.0, 800, 6.5),
        Sample(3.0, 400, 7.0),
        Sample(4.0, 100, 7.3),
        Sample(9.0, 0, 9.0),  # the last few in flight
    ]
    rate = steady(samples, 1000)
    assert rate.per_s == pytest.approx(350)
    assert rate.cpu_ms == pytest.approx(1000 * 0.8 / 700)


def test_a_round_that_was_over_too_soon_gives_no_rate() -> None:
    with pytest.raises(ValueError, match="more objects"):
        steady([Sample(0.0, 1000, 0.0), Sample(1.0, 0, 1.0)], 1000)


def test_upload_rows_divide_the_right_way_round() -> None:
    found = Rounds([Rate(700.0, 1.0)], [Rate(1000.0, 1.2)], [Rate(1000.0, 1.3)], reads=0.25)
    puts, puts_cpu, throughput, cpu = rows("ceph", found)
    assert [row.ratios and row.ratios.median for row in (puts, puts_cpu)] == [0.7, 1.2]
    assert (puts.met, puts_cpu.met) == (None, None)
    assert throughput.ratios is not None
    assert cpu.ratios is not None
    assert (throughput.ratios.median, throughput.met) == (0.7, True)
    assert (cpu.ratios.median, cpu.met) == (1.3, True)
    assert "0.25 GETs" in cpu.against


def test_time_counts_for_the_innermost_layer_that_has_a_name() -> None:
    worker, storage = (
        "/x/workers/keyturn_workers/upload/uploader.py",
        "/x/workers/keyturn_workers/storage/s3_http.py",
    )
    assert (
        layer_of(["/lib/json/decoder.py", "/x/contracts/keyturn/messages.py", worker])
        == "validation"
    )
    assert layer_of(["/lib/aiohttp/client.py", storage, worker]) == "S3: requests"
    assert layer_of(["/lib/python/threading.py"]) == "other"
    assert shares({(storage,): 2, (storage, worker): 1, (worker,): 1}) == {
        "S3: requests": 3,
        "upload logic": 1,
    }


def test_layers_are_milliseconds_that_add_up_to_the_cpu_time() -> None:
    by_layer = Sampled({"crypto: HPKE": 30, "logs": 10}, reads=3).an_object(per_s=500, cpu_ms=0.8)
    assert by_layer == pytest.approx({"crypto: HPKE": 0.6, "logs": 0.2, WAITING: 1.2})
    shown = profile_table("upload worker", by_layer)
    cells = [list(column.cells) for column in shown.columns]
    assert cells[0] == ["crypto: HPKE", "logs", "all", "waiting, by the clock"]
    assert cells[1] == ["0.600", "0.200", "0.800", "1.200"]
    assert cells[2] == ["75.0%", "25.0%", "100%", "-"]


def test_no_time_is_waited_where_more_than_one_core_was_busy() -> None:
    assert Sampled({"logs": 1}, reads=0).an_object(per_s=1000, cpu_ms=1.5)[WAITING] == 0.0


def test_openssl_speed_is_read_as_bytes_a_second() -> None:
    text = "type        1048576 bytes\nAES-256-GCM   10000000.00k\n"
    assert openssl_speed(text) == pytest.approx(10.0)
    assert openssl_speed("nothing") is None


@pytest.mark.parametrize("size_bytes", [0, 1, 16384, 3 * 2**20 + 5])
def test_a_file_sealed_while_it_is_read_is_a_sealed_body(size_bytes: int) -> None:
    key, context = bytes(32), b"bench"
    source = SealedFile(key, context, size_bytes)
    sealed = b"".join(iter(lambda: source.read(100_000), b""))
    assert len(sealed) == sealed_size(size_bytes)
    assert len(open_sealed(key, context, sealed)) == size_bytes
