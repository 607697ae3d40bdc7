"""Decides whether a delivery is recorded, before anything else is made for it.

The SDK decides too, but only after it has created ids, a context and a non-recording span. Perhaps
one delivery in a hundred is recorded, so for the other 99 this decision is the whole cost.
"""

import random
from typing import Final

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Tracer

from keyturn_workers.tracing.scope import begin

_TRACE_ID_BITS: Final = 128
_LIMIT: Final = TraceIdRatioBased.TRACE_ID_LIMIT


class DecidedIds(RandomIdGenerator):
    """Random ids; the next trace gets the id that the sampling decision was based on."""

    def __init__(self) -> None:
        self.decided = 0

    def generate_trace_id(self) -> int:
        """The id of a new trace."""
        decided, self.decided = self.decided, 0
        return decided or super().generate_trace_id()


class RootSampling:
    """Begins the traces that the sampler chooses.

    Calling the SDK's sampler takes six times as long: it looks up a parent and builds a result. It
    still runs for the traces chosen here and, given the same id, makes the same decision.

    Args:
        tracer: Creates the spans. Its provider uses `ids`.
        ids: The provider's id generator.
        ratio: The fraction of root spans that the provider's sampler records.
    """

    def __init__(self, tracer: Tracer, ids: DecidedIds, ratio: float) -> None:
        self.tracer = tracer
        self._ids = ids
        self._bound = TraceIdRatioBased.get_bound_for_rate(ratio)
        self._random_bits = random.getrandbits

    def choose(self) -> int | None:
        """The id of a new trace, or None if it is not recorded."""
        trace_id = self._random_bits(_TRACE_ID_BITS)
        return trace_id if trace_id & _LIMIT < self._bound else None

    def begin(self, trace_id: int, name: str, kind: SpanKind) -> Span:
        """The root of the trace that was chosen."""
        self._ids.decided = trace_id
        return begin(self.tracer, name, kind)
