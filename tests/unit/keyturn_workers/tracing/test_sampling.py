"""Whether a delivery is recorded is decided once, by the id that its trace then has."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio, TraceIdRatioBased
from opentelemetry.trace import SpanKind

from keyturn_workers.tracing.sampling import DecidedIds, RootSampling


def _sampling(ratio: float) -> RootSampling:
    ids, sampler = DecidedIds(), ParentBasedTraceIdRatio(ratio)
    provider = TracerProvider(sampler=sampler, id_generator=ids, shutdown_on_exit=False)
    return RootSampling(provider.get_tracer("test"), sampler, ids)


@pytest.mark.parametrize(("ratio", "recorded"), [(0.0, 0), (1.0, 50)])
def test_all_or_none(ratio: float, recorded: int) -> None:
    sampling = _sampling(ratio)
    begun = [sampling.begin("process", SpanKind.CONSUMER) for _ in range(50)]
    assert sum(span is not None for span in begun) == recorded


def test_the_share_is_that_of_the_sampler_and_decided_once() -> None:
    """Decided a second time, by another id, a tenth of a tenth would be recorded."""
    sampling, bound = _sampling(0.1), TraceIdRatioBased(0.1).bound
    begun = [sampling.begin("process", SpanKind.CONSUMER) for _ in range(3000)]
    spans = [span for span in begun if span is not None]
    assert 150 < len(spans) < 500
    for span in spans:
        assert span.is_recording()
        assert span.get_span_context().trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < bound


def test_each_trace_has_an_id_of_its_own() -> None:
    sampling = _sampling(1.0)
    begun = [sampling.begin("process", SpanKind.CONSUMER) for _ in range(20)]
    ids = {span.get_span_context().trace_id for span in begun if span is not None}
    assert len(ids) == 20
    # A trace that begins elsewhere is none of these.
    other = sampling.tracer.start_span("other").get_span_context().trace_id
    assert other not in ids
