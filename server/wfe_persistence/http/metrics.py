"""The page `/metrics`: what `metrics.py` has counted, as Prometheus text or OpenMetrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http import HTTPStatus
from itertools import accumulate
from typing import TypeVar

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from wfe_persistence import metrics
from wfe_persistence.http.server import Request, Response
from wfe_persistence.versions import versions

_T = TypeVar("_T")


class MetricsPage:
    """Answers scrapes, one after the other, in a thread: encoding takes some 10 ms. `own`: the
    metrics of the server's own that it has."""

    def __init__(self, own: Sequence[metrics.Metric] = metrics.METRICS) -> None:
        self._own = own
        self._registry = CollectorRegistry(auto_describe=False)
        self._metrics = _Metrics(own)
        self._registry.register(self._metrics)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._turn = asyncio.Lock()

    async def answer(self, request: Request) -> Response:
        """The metrics, in the format that the client prefers."""
        return await self.read(partial(encoded, request))

    async def read(self, use: Callable[[Collector], _T]) -> _T:
        """What `use` makes of the metrics, in a thread."""
        async with self._turn:
            # Here, where nothing changes meanwhile.
            self._metrics.gauges = {
                metric.name: metric.current()
                for metric in self._own
                if isinstance(metric, metrics.Gauge)
            }
            return await asyncio.to_thread(use, self._registry)


def encoded(request: Request, of: Collector) -> Response:
    """Metrics, in the format that the client prefers."""
    accept = ", ".join(request.headers.get("accept", ()))
    encode, content_type = choose_encoder(accept)
    return Response(HTTPStatus.OK, encode(of), content_type)


class _Metrics(Collector):
    """What the server has counted."""

    def __init__(self, own: Sequence[metrics.Metric]) -> None:
        self._own = own
        self.gauges: dict[str, Sequence[tuple[metrics.Labels, float]]] = {}

    def collect(self) -> Iterator[Metric]:
        numbers = versions()
        yield InfoMetricFamily(
            f"{metrics.PREFIX}build",
            "The version of the server, and the schema version that it has.",
            {"version": numbers["wfe-persistence"], "schema_version": numbers["schema"]},
        )
        for metric in self._own:
            if isinstance(metric, metrics.Gauge):
                gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
                for labels, value in self.gauges.get(metric.name, ()):
                    gauge.add_metric(labels, value)
                yield gauge
            else:
                yield _family(metric)


def _family(metric: metrics.Counter | metrics.Histogram) -> Metric:
    # Copies are made in one step, because the event loop goes on counting.
    if isinstance(metric, metrics.Histogram):
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, distribution in list(metric.values.items()):
            totals = accumulate(list(distribution.counts))
            bounds = [*map(str, metric.bounds), "+Inf"]
            histogram.add_metric(
                labels, list(zip(bounds, totals, strict=True)), sum_value=distribution.sum
            )
        return histogram
    counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in list(metric.values.items()):
        counter.add_metric(labels, value)
    return counter
