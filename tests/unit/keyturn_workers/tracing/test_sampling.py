"""Whether a delivery is recorded is decided once, by the id that its trace then has."""

from __future__ import annotations

from unittest import mock

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, ParentBasedTraceIdRatio, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind

from keyturn_workers.tracing.sampling import DecidedIds, RootSampling


def _sampling(ratio: float) -> RootSampling:
    ids, sampler = DecidedIds(), ParentBasedTraceIdRatio(ratio)
    provider = TracerProvider(sampler=sampler, id_generator=ids, shutdown_on_exit=False)
    return RootSampling(provider.get_tracer("test"), ids, ratio)


def _begun(sampling: RootSampling, count: int) -> list[Span]:
    chosen = [sampling.choose() for _ in range(count)]
    return [
        sampling.begin(trace_id, "process", SpanKind.CONSUMER)
        for trace_id in chosen
        if trace_id is not None
    ]


@pytest.mark.parametrize(("ratio", "recorded"), [(0.0, 0), (1.0, 50)])
def test_all_or_none(ratio: float, recorded: int) -> None:
    assert len(_begun(_sampling(ratio), 50)) == recorded


@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.5])
def test_the_sdk_sampler_makes_the_same_decision(ratio: float) -> None:
    """For each id, both reject or both accept."""
    sampling, sampler = _sampling(ratio), ParentBasedTraceIdRatio(ratio)
    bound = TraceIdRatioBased(ratio).bound
    for trace_id in (0, bound - 1, bound, bound + 1, TraceIdRatioBased.TRACE_ID_LIMIT, bound << 64):
        with mock.patch.object(sampling, "_random_bits", lambda _, fixed=trace_id: fixed):
            chosen = sampling.choose()
        decision = sampler.should_sample(None, trace_id, "process", SpanKind.CONSUMER).decision
        assert (chosen == trace_id) == (decision is Decision.RECORD_AND_SAMPLE)


def test_the_share_is_that_of_the_sampler_and_decided_once() -> None:
    """Decided a second time, by another id, a tenth of a tenth would be recorded."""
    spans = _begun(_sampling(0.1), 3000)
    assert 150 < len(spans) < 500
    bound = TraceIdRatioBased(0.1).bound
    for span in spans:
        assert span.is_recording()
        assert span.get_span_context().trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < bound


def test_each_trace_has_an_id_of_its_own() -> None:
    sampling = _sampling(1.0)
    ids = {span.get_span_context().trace_id for span in _begun(sampling, 20)}
    assert len(ids) == 20
    # A trace that begins elsewhere is none of these.
    other = sampling.tracer.start_span("other").get_span_context().trace_id
    assert other not in ids
