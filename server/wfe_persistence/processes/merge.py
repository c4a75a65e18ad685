"""The metrics of all worker processes as if they were those of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from wfe_persistence import metrics

Snapshot = dict[str, Any]
"""The families of metrics of one process by name, as JSON: `type`, `help`, and `samples`, lists of
name, labels and value."""

# What several numbers of a gauge are together, if they are not to be added.
_OVER: Final = {
    "process_max_fds": min,
    "process_start_time_seconds": min,
    "python_info": max,
} | {
    metric.name: min if metric.over == "min" else max
    for metric in metrics.METRICS
    if isinstance(metric, metrics.Gauge) and metric.over != "sum"
}

_LASTING: Final = frozenset({"counter", "histogram"})


def snapshot(collector: Collector) -> Snapshot:
    """What a process has counted."""
    return {
        family.name: {
            "type": family.type,
            "help": family.documentation,
            "samples": [[sample.name, sample.labels, sample.value] for sample in family.samples],
        }
        for family in collector.collect()
    }


def lasting(of: Snapshot) -> Snapshot:
    """What remains true when a process has ended: what it has counted, but not how it was."""
    return {name: family for name, family in of.items() if family["type"] in _LASTING}


def merged(snapshots: Iterable[Snapshot]) -> Snapshot:
    """The numbers of several processes together: what they have counted is added, and so is how
    they are, but for what `metrics.Gauge.over` says."""
    whole: Snapshot = {}
    for one in snapshots:
        for name, family in one.items():
            into = whole.setdefault(name, {**family, "samples": {}})["samples"]
            of_one_kind = family["type"] in ("info", "unknown")
            together = max if of_one_kind else _OVER.get(name, _add)
            for sample, labels, value in family["samples"]:
                key = (sample, tuple(labels.items()))
                into[key] = together(into[key], value) if key in into else value
    for family in whole.values():
        family["samples"] = [
            [sample, dict(labels), value] for (sample, labels), value in family["samples"].items()
        ]
    return whole


def _add(a: float, b: float) -> float:
    return a + b


class Merged(Collector):
    """A merged snapshot, for the encoders of prometheus-client."""

    def __init__(self, families: Snapshot) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """The families."""
        for name, family in self._families.items():
            metric = Metric(name, family["help"], family["type"])
            metric.samples = [Sample(*sample) for sample in family["samples"]]
            yield metric
