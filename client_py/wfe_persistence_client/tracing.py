"""The trace of the host goes on in the server, if the host traces with OpenTelemetry.

Nothing is imported for it: a host that traces has loaded its API.
"""

import sys


def trace_context() -> list[tuple[str, str]]:
    """What continues the current span: `traceparent` and the like, as the host's propagators write
    it. Empty without OpenTelemetry, and outside of spans."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not trace.get_current_span().get_span_context().is_valid:
        return []
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    # Anything else could not be sent: a call does not fail because of its trace.
    return [
        (key.lower(), value)
        for key, value in carrier.items()
        if value.isascii() and value.isprintable()
    ]
