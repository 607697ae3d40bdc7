"""A trace is recorded as a whole or not at all; of an error its code, and never its text."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode

from keyturn.errors import AlreadyExistsError
from keyturn_workers.amqp.consumer import DeferError
from keyturn_workers.tracing.scope import MAX_SPANS, begin, current_scope, recorded
from tests.unit.keyturn_workers.tracing.recorder import Recorder


def test_outside_a_trace_there_is_no_scope() -> None:
    recorder = Recorder()
    assert current_scope() is None
    with recorded(recorder.tracer, begin(recorder.tracer, "root", SpanKind.CONSUMER)):
        assert current_scope() is not None
    assert current_scope() is None
    assert not trace.get_current_span().is_recording()


def test_spans_are_nested_as_their_blocks() -> None:
    recorder = Recorder()
    with recorded(recorder.tracer, begin(recorder.tracer, "root", SpanKind.CONSUMER)) as scope:
        with scope.span("outer"):
            inner = current_scope()
            assert inner is not None
            with inner.span("inner"):
                pass
        with scope.span("next"):
            pass
    assert [recorder.parent(name) for name in ("inner", "outer", "next")] == [
        "outer",
        "root",
        "root",
    ]
    assert recorder.parent("root") is None


def test_a_root_has_no_parent_whatever_surrounds_it() -> None:
    recorder = Recorder()
    with recorder.tracer.start_as_current_span("around"):
        root = begin(recorder.tracer, "root", SpanKind.CONSUMER)
        with recorded(recorder.tracer, root):
            pass
    assert recorder.parent("root") is None


def test_of_an_error_only_the_code_is_recorded() -> None:
    recorder = Recorder()
    root = begin(recorder.tracer, "root", SpanKind.CONSUMER)
    with (
        pytest.raises(AlreadyExistsError),
        recorded(recorder.tracer, root) as scope,
        scope.span("stage"),
    ):
        raise AlreadyExistsError("secret/name.pdf")
    for name in ("root", "stage"):
        assert recorder.attributes(name)["error.type"] == "already_exists"
        assert recorder.span(name).status.status_code is StatusCode.ERROR
        assert not recorder.span(name).events
    assert "secret" not in recorder.shown()


def test_a_deferral_is_no_error() -> None:
    recorder = Recorder()
    root = begin(recorder.tracer, "root", SpanKind.CONSUMER)
    with pytest.raises(DeferError), recorded(recorder.tracer, root):
        raise DeferError(5)
    assert "error.type" not in recorder.attributes("root")


def test_a_trace_is_bounded() -> None:
    recorder = Recorder()
    with recorded(recorder.tracer, begin(recorder.tracer, "root", SpanKind.CONSUMER)) as scope:
        for _ in range(MAX_SPANS + 7):
            with scope.span("request"):
                pass
    assert len(recorder.spans) == MAX_SPANS + 1
    assert recorder.attributes("root")["keyturn.spans_omitted"] == 7


async def test_traces_of_concurrent_tasks_are_kept_apart() -> None:
    recorder = Recorder()

    async def serve(name: str) -> None:
        with recorded(recorder.tracer, begin(recorder.tracer, name, SpanKind.CONSUMER)):
            await asyncio.sleep(0)
            scope = current_scope()
            assert scope is not None
            with scope.span(f"{name}'s"):
                await asyncio.sleep(0)

    await asyncio.gather(*(serve(name) for name in "abc"))
    assert [recorder.parent(f"{name}'s") for name in "abc"] == ["a", "b", "c"]
