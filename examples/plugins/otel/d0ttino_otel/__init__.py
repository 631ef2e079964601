"""Spans and metrics of d0ttino's requests and attempts, by OpenTelemetry's conventions for generative AI."""

import os
import time
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from llm import Attempt, Completion, Request, hookimpl
from scripts.plugin_sdk import print_warning

__version__ = "0.1.0"

#: Options of requests that the conventions have, and their types.
OPTIONS = {"temperature": float, "top_p": float, "frequency_penalty": float, "max_tokens": int, "seed": int}
#: The boundaries of histograms in the conventions.
SECONDS = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
TOKENS = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864]


@hookimpl
def llm_configure() -> None:
    """Send to a collector if the environment names one, unless the program has set up OpenTelemetry itself."""
    named = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}ENDPOINT") for name in ("", "TRACES_"))
    if not named or not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        print_warning(f"nothing is sent to the OpenTelemetry collector: {error}; install 'd0ttino-otel[otlp]'")
        return
    name = os.environ.get("OTEL_SERVICE_NAME", "d0ttino")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@hookimpl
def llm_close() -> None:
    """Send the spans that wait in a batch."""
    flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if flush is not None:
        flush(5000)


@hookimpl
def llm_completed(request: Request, completion: Completion | None, error: Exception | None) -> None:
    """Record a span for a request that ended, and one for each of its attempts, at the times of these."""
    attempts = getattr(error, "attempts", ()) if completion is None else completion.attempts
    end = max((one.ended for one in attempts), default=0.0) or time.time()
    starts = [one.ended - one.duration for one in attempts if one.ended]
    start = min([*starts, end if completion is None else end - completion.duration])
    tracer = trace.get_tracer("d0ttino", __version__)
    root = tracer.start_span("d0ttino request", start_time=ns(start), attributes=of_request(request, completion))
    inside = trace.set_span_in_context(root)
    for number, attempt in enumerate(attempts, 1):
        known = of_attempt(request, attempt)
        record_metrics(attempt, known)
        if completion is not None and completion.finish_reason and number == len(attempts):
            known["gen_ai.response.finish_reasons"] = [completion.finish_reason]
        known.update({"d0ttino.attempt": number, **of_plugin(attempt)})
        span = tracer.start_span(
            f"chat {attempt.model}" if attempt.model else "chat",
            inside,
            SpanKind.CLIENT,
            known,
            start_time=ns((attempt.ended or end) - attempt.duration),
        )
        if attempt.error is not None:
            span.set_status(Status(StatusCode.ERROR, attempt.error_type))
        span.end(ns(attempt.ended or end))
    if error is not None:
        root.set_attribute("error.type", type(error).__name__)
        root.set_status(Status(StatusCode.ERROR, type(error).__name__))
    root.end(ns(end))


def ns(seconds: float) -> int:
    """Return a time in OpenTelemetry's unit: nanoseconds since the epoch."""
    return round(seconds * 1e9)


def without_none(known: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes that have a value."""
    return {name: value for name, value in known.items() if value is not None}


def of_plugin(attempt: Attempt) -> dict[str, Any]:
    """Return the plug-in of an attempt, and its cost; not the text of an error, which may quote a prompt."""
    origin = attempt.origin
    known = {"d0ttino.plugin": origin and origin.plugin, "d0ttino.distribution": origin and origin.distribution}
    return without_none({**known, "d0ttino.usage.cost": attempt.usage and attempt.usage.cost})


def of_request(request: Request, completion: Completion | None) -> dict[str, Any]:
    """Return the attributes of a request as a whole."""
    known: dict[str, Any] = {"gen_ai.conversation.id": request.metadata.get("conversation")}
    if completion is not None:
        known.update({"d0ttino.backend": completion.backend, "d0ttino.asked_backend": completion.asked_backend})
        known.update({"d0ttino.plugin": completion.plugin, "d0ttino.fell_back": completion.fell_back})
    return without_none(known)


def of_attempt(request: Request, attempt: Attempt) -> dict[str, Any]:
    """Return the attributes of an attempt that the conventions have."""
    known: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": attempt.backend,
        "gen_ai.request.model": attempt.model,
        "gen_ai.response.model": attempt.served_model,
        "error.type": None if attempt.error is None else str(attempt.status or attempt.error_type),
        "http.response.status_code": attempt.status,
    }
    if attempt.usage is not None:
        known["gen_ai.usage.input_tokens"] = attempt.usage.input_tokens
        known["gen_ai.usage.output_tokens"] = attempt.usage.output_tokens
    for name, kind in OPTIONS.items():
        try:
            known[f"gen_ai.request.{name}"] = kind(request.options[name])
        except (KeyError, TypeError, ValueError):
            continue  # not given, or not a number: the backend refuses that
    return without_none(known)


def record_metrics(attempt: Attempt, known: dict[str, Any]) -> None:
    """Record the duration of an attempt, and its tokens."""
    meter = metrics.get_meter("d0ttino", __version__)
    kept = {name: value for name, value in known.items() if name.endswith((".name", ".model", ".type"))}
    took = meter.create_histogram("gen_ai.client.operation.duration", "s", explicit_bucket_boundaries_advisory=SECONDS)
    took.record(attempt.duration, kept)
    used = meter.create_histogram("gen_ai.client.token.usage", "{token}", explicit_bucket_boundaries_advisory=TOKENS)
    for kind in ("input", "output"):
        tokens = known.get(f"gen_ai.usage.{kind}_tokens")
        if tokens is not None:
            used.record(tokens, {**kept, "gen_ai.token.type": kind})
