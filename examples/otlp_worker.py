#!/usr/bin/env python3
"""A worker that is watched through OpenTelemetry, and asks before each step whether it may go on.

    pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http
    export OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318
    python3 examples/otlp_worker.py --tenant acme --sidecar http://127.0.0.1:8080

Over TLS both addresses begin with https, and who signed the sidecar's certificate is in OTEL_EXPORTER_OTLP_CERTIFICATE=ca.pem for spans and
in --ca ca.pem for verdicts.

Nothing in it is runwarden's but the attribute that names the tenant: the spans are those of any agent that follows the GenAI conventions.
Its run is the trace. What it is asked and what it answers is in its spans, as instrumentations may put it there; runwarden reads past it.
"""

import argparse
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def verdict(arguments, run):
    """What the sidecar says of a run: allow, queue, degrade, reject, pause, stop or kill."""
    query = urllib.parse.urlencode({"tenant_id": arguments.tenant})
    request = urllib.request.Request(f"{arguments.sidecar}/api/v1/runs/{run}/verdict?{query}")
    if arguments.token:
        request.add_header("Authorization", f"Bearer {arguments.token}")
    try:
        with urllib.request.urlopen(request, timeout=5, context=arguments.trust) as answer:
            said = json.load(answer)
            return said["verdict"], said.get("reason")
    except urllib.error.HTTPError as error:
        # 503: it does not know yet; what is not known is not allowed, and asked again
        return ("pause", "not known yet") if error.code == 503 else ("stop", f"the sidecar answers {error.code}")


def call(tracer, arguments):
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.input.messages": json.dumps([{"role": "user", "parts": [{"type": "text", "content": arguments.prompt}]}]),
    }
    with tracer.start_as_current_span(f"chat {arguments.prompt}", kind=trace.SpanKind.CLIENT, attributes=attributes) as span:
        time.sleep(arguments.pace / 1000)
        span.add_event("gen_ai.content.prompt", {"gen_ai.prompt": arguments.prompt})
        span.set_attribute("gen_ai.usage.input_tokens", arguments.tokens)
        span.set_attribute("gen_ai.usage.output_tokens", 0)
        span.set_attribute("gen_ai.output.messages", arguments.prompt)


def use_tool(tracer, arguments):
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "search",
        "gen_ai.tool.call.arguments": arguments.prompt,
        "gen_ai.tool.call.result": arguments.prompt,
    }
    with tracer.start_as_current_span("execute_tool search", attributes=attributes) as span:
        span.set_status(trace.StatusCode.ERROR, f"nothing was found for {arguments.prompt}")
        span.set_attribute("error.type", "not_found")


def work(tracer, arguments):
    """One run: an agent that calls a model again and again. Its id, and why it was stopped."""
    attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": arguments.agent}
    with tracer.start_as_current_span(f"invoke_agent {arguments.agent}", attributes=attributes) as span:
        run = format(span.get_span_context().trace_id, "032x")
        for _ in range(arguments.steps):
            said, reason = verdict(arguments, run)
            if said in ("stop", "kill"):
                span.set_status(trace.StatusCode.ERROR, f"{reason} {arguments.prompt}")
                span.set_attribute("error.type", "stopped_by_policy")
                return run, f"{said}: {reason}"
            if said == "pause":
                time.sleep(0.1)
                continue
            call(tracer, arguments)
            use_tool(tracer, arguments)
    return run, None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sidecar", default="http://127.0.0.1:8080", help="where verdicts are given")
    parser.add_argument("--token", default="", help="bearer token for verdicts")
    parser.add_argument("--ca", help="who signed the sidecar's certificate, PEM; default: those the system trusts")
    parser.add_argument("--tenant", default="acme", help="tenant of the runs")
    parser.add_argument("--agent", default="planner", help="name of the agent")
    parser.add_argument("--prompt", default="What is the weather in Berne?", help="what the model is asked")
    parser.add_argument("--tokens", type=int, default=4_000, help="tokens of a call")
    parser.add_argument("--pace", type=int, default=50, help="milliseconds a call takes")
    parser.add_argument("--steps", type=int, default=200, help="calls of a run that nobody stops")
    arguments = parser.parse_args()
    arguments.trust = ssl.create_default_context(cafile=arguments.ca) if arguments.sidecar.startswith("https:") else None
    resource = Resource.create({"service.name": "otlp-worker", "runwarden.tenant_id": arguments.tenant})
    provider = TracerProvider(resource=resource)
    # a limit acts when it sees a step: the default of five seconds is long (OTEL_BSP_SCHEDULE_DELAY)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=200))
    run, stopped = work(provider.get_tracer("examples.otlp_worker"), arguments)
    provider.shutdown()
    print(f"run {run} was stopped: {stopped}" if stopped else f"run {run} came to its end")


if __name__ == "__main__":
    main()
