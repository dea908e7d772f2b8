"""An application that is traced by OpenTelemetry, or Sentry. Its spans go to the file TEST_SPANS. Workers run it.

As a program, ``python -m tests.traced REQUESTS``, it is a web server that publishes an event in each request.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import sentry_sdk
from celery import Celery
from celery.signals import worker_process_init
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from pydantic import BaseModel
from sentry_sdk.integrations.celery import CeleryIntegration

import bridge
from bridge import Event, get_bus, on_event, publish_event
from tests.support.spans import SpanFile

PREFIX = os.environ.get("BRIDGE_CHANNEL_PREFIX", "test:")
#: Where OpenTelemetry is set up: in each pool process, as its documentation says, in the main process, too, or nowhere.
SET_UP = os.environ.get("TEST_OTEL", "pool")
INSTRUMENTED = os.environ.get("TEST_INSTRUMENTED") == "yes"

app = Celery("traced")
app.conf.update(
    broker_url=os.environ.get("CELERY_BROKER_URL") or os.environ.get("REDIS_URL"),
    broker_transport_options={"global_keyprefix": f"broker:{PREFIX}"},
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
bridge.install(app)


def set_up(**_: Any) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(SpanFile(Path(os.environ["TEST_SPANS"]))))
    trace.set_tracer_provider(provider)
    if INSTRUMENTED:
        CeleryInstrumentor().instrument()


@on_event("order.placed")
def pay(event: Event) -> None:
    publish_event("order.paid", {"order": event.payload["order"]})


@on_event("order.paid", autoretry_for=(ConnectionError,), retry_backoff=False, default_retry_delay=0)
def ship(event: Event) -> None:
    if event.payload.get("unreachable") and not get_bus().client.incr(f"{PREFIX}tries:{event.id}") > 1:
        raise ConnectionError("not reachable")
    publish_event("order.shipped", {"order": event.payload["order"]})


@on_event("order.shipped")
def thank(event: Event) -> None:
    span = trace.get_current_span().get_span_context()
    get_bus().client.rpush(f"{PREFIX}thanked", "sampled" if span.trace_flags.sampled else "not sampled")


@on_event("order.refused")
def refuse(event: Event) -> None:
    raise ValueError(f"cannot be delivered to {event.payload['address']}")


class Sized(BaseModel):
    """A payload."""

    size: int


@on_event("order.sized")
def weigh(event: Event[Sized]) -> None: ...


def main(requests: int) -> None:
    set_up()
    tracer = trace.get_tracer("server")
    for order in range(requests):
        with tracer.start_as_current_span("POST /orders", kind=trace.SpanKind.SERVER):
            publish_event("order.placed", {"order": order})


if os.environ.get("TEST_SENTRY"):
    sentry_sdk.init(integrations=[CeleryIntegration()], default_integrations=False, traces_sample_rate=1.0)
elif SET_UP == "pool":
    worker_process_init.connect(set_up, weak=False)
elif SET_UP == "main" and __name__ != "__main__":
    set_up()
if __name__ == "__main__":
    main(int(sys.argv[1]))
