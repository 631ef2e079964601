"""What OpenTelemetry gets, read from the SDK's exporters in memory."""

import time
from itertools import pairwise

import d0ttino_otel
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llm import Backend, Completion, Request, complete, hookimpl, stream
from llm.config import RoutingMode, Settings
from llm.errors import BackendError, BackendHTTPError
from llm.router import CutAnswerError, NoAnswerError
from llm.routing.fallback import RetryPolicy
from llm.testing import host_with
from llm.types import Usage

EXPORTER, READER = InMemorySpanExporter(), InMemoryMetricReader()
PROVIDER = TracerProvider()
PROVIDER.add_span_processor(SimpleSpanProcessor(EXPORTER))
trace.set_tracer_provider(PROVIDER)
metrics.set_meter_provider(MeterProvider([READER]))

SETTINGS = Settings("big", "small", primary_model="m-1", routing_mode=RoutingMode.REMOTE)


class Two:
    @hookimpl
    def llm_backends(self):
        return [Backend("big", self.fail), Backend("small", self.answer, stream=self.pieces)]

    def fail(self, prompt, model=None):
        raise BackendHTTPError("a secret prompt: overloaded", status=503)

    def answer(self, prompt, model=None, options=None):
        time.sleep(0.02)
        return Completion("fine", model="m-2", served_model="m-2b", usage=Usage(3, 4, 0.5), finish_reason="stop")

    def pieces(self, prompt):
        yield "fi"
        time.sleep(0.02)
        yield "ne"
        if "cut" in prompt:
            raise BackendError("a secret prompt: it broke")
        yield Completion("", usage=Usage(1, 2))


@pytest.fixture
def host():
    EXPORTER.clear()
    return host_with(Two(), d0ttino_otel)


def spans():
    """Return the root and its children, which were ended before it."""
    *children, root = EXPORTER.get_finished_spans()
    assert all(child.parent.span_id == root.context.span_id for child in children)
    return root, children


def ask(host, **fields):
    retries = RetryPolicy(per_backend=1)
    return complete(Request("a secret prompt", **fields), host=host, settings=SETTINGS, retries=retries)


def test_attempts_are_children_of_the_request_at_their_true_times(host):
    before = time.time_ns()
    with trace.get_tracer("a program").start_as_current_span("its work") as outer:
        completion = ask(host, options={"temperature": "0.5", "seed": "x"})
    after = time.time_ns()
    *inner, work = EXPORTER.get_finished_spans()
    first, second, root = inner
    assert (work.name, root.name) == ("its work", "d0ttino request")
    assert root.parent.span_id == outer.get_span_context().span_id
    assert [first.parent.span_id, second.parent.span_id] == [root.context.span_id] * 2
    assert (first.name, second.name) == ("chat m-1", "chat m-2")
    # A clock that is set meanwhile moves the epoch, not the order: a millisecond is rounding.
    times = [before, root.start_time, first.start_time, first.end_time, second.start_time, second.end_time, after]
    assert all(early <= late + 1_000_000 for early, late in pairwise(times)), times
    assert second.end_time - second.start_time == pytest.approx(completion.attempts[1].duration * 1e9, abs=1e6)
    assert second.end_time - second.start_time >= 20_000_000


def test_attributes_are_those_of_the_conventions(host):
    ask(host, options={"temperature": "0.5", "max_tokens": 100, "seed": "x"}, metadata={"conversation": "c1"})
    root, (failed, answered) = spans()
    assert failed.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "big",
        "gen_ai.request.model": "m-1",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 100,
        "error.type": "503",
        "http.response.status_code": 503,
        "d0ttino.attempt": 1,
        "d0ttino.plugin": failed.attributes["d0ttino.plugin"],
    }
    assert (failed.status.status_code.name, failed.kind.name) == ("ERROR", "CLIENT")
    more = {"gen_ai.response.model": "m-2b", "gen_ai.response.finish_reasons": ("stop",), "d0ttino.usage.cost": 0.5}
    more |= {"gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 4, "gen_ai.provider.name": "small"}
    assert more.items() <= dict(answered.attributes).items()
    assert answered.status.status_code.name == "UNSET"
    whole = {"d0ttino.fell_back": True, "d0ttino.asked_backend": "big", "gen_ai.conversation.id": "c1"}
    assert whole.items() <= dict(root.attributes).items()
    assert "gen_ai.usage.input_tokens" not in root.attributes  # nobody counts it twice
    assert "secret" not in "".join(span.to_json() for span in EXPORTER.get_finished_spans())


def test_a_streamed_answer_lasts_until_its_end(host):
    answer = stream(Request("hi", backend="small"), host=host)
    assert next(answer) == "fi"
    assert EXPORTER.get_finished_spans() == ()
    assert list(answer) == ["ne"]
    root, (child,) = spans()
    assert child.end_time - child.start_time >= 20_000_000
    assert root.start_time <= child.start_time + 1_000_000


def test_failures_are_errors_of_the_request(host):
    with pytest.raises(CutAnswerError):
        list(stream(Request("cut a secret prompt", backend="small"), host=host))
    root, (child,) = spans()
    assert (root.attributes["error.type"], child.attributes["error.type"]) == ("CutAnswerError", "BackendError")
    EXPORTER.clear()
    with pytest.raises(NoAnswerError):
        ask(host, backend="big")
    root, (child,) = spans()
    assert (root.status.status_code.name, root.attributes["error.type"]) == ("ERROR", "NoAnswerError")
    assert "secret" not in root.to_json() + child.to_json()


def test_metrics_have_durations_and_tokens(host):
    READER.get_metrics_data()
    ask(host)
    (resource,) = READER.get_metrics_data().resource_metrics
    found = {metric.name: metric for scope in resource.scope_metrics for metric in scope.metrics}
    took, used = found["gen_ai.client.operation.duration"], found["gen_ai.client.token.usage"]
    assert (took.unit, used.unit) == ("s", "{token}")
    assert {point.attributes["gen_ai.provider.name"] for point in took.data.data_points} == {"big", "small"}
    points = {
        point.attributes["gen_ai.token.type"]: point
        for point in used.data.data_points
        if point.attributes.get("gen_ai.response.model") == "m-2b"
    }
    assert set(points) == {"input", "output"}
    assert points["input"].sum % 3 == 0
