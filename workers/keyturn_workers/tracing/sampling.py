"""Decides whether a delivery is recorded, before anything else is made for it.

The SDK decides too, but only after it has made ids, a context and a span that records nothing. Of
a hundred deliveries perhaps one is recorded, so the decision is what the other 99 cost.
"""

import random
from typing import Final

from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.trace import Span, SpanKind, Tracer

from keyturn_workers.tracing.scope import begin

_NO_PARENT: Final = Context()
_TRACE_ID_BITS: Final = 128


class DecidedIds(RandomIdGenerator):
    """Random ids; the next trace gets the id by which it was decided to record it."""

    def __init__(self) -> None:
        self.decided = 0

    def generate_trace_id(self) -> int:
        """The id of a new trace."""
        decided, self.decided = self.decided, 0
        return decided or super().generate_trace_id()


class RootSampling:
    """Begins the traces that the sampler chooses.

    Args:
        tracer: Makes the spans, with ids of `ids` and by the same sampler.
        sampler: Decides by the id of a trace, so that it decides twice alike.
        ids: Of the provider.
    """

    def __init__(self, tracer: Tracer, sampler: Sampler, ids: DecidedIds) -> None:
        self.tracer = tracer
        self._should_sample = sampler.should_sample
        self._ids = ids
        self._random_bits = random.getrandbits

    def begin(self, name: str, kind: SpanKind) -> Span | None:
        """The root of a new trace, or None if it is not recorded."""
        trace_id = self._random_bits(_TRACE_ID_BITS)
        result = self._should_sample(_NO_PARENT, trace_id, name, kind)
        if result.decision is not Decision.RECORD_AND_SAMPLE:
            return None
        self._ids.decided = trace_id
        return begin(self.tracer, name, kind)
