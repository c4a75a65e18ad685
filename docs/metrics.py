"""docs/metrics.md: the metrics as they are declared."""

from pathlib import Path
from typing import Final

from wfe_persistence.metrics import METRICS, Metric

PAGE: Final = Path(__file__).with_suffix(".md")

INTRODUCTION: Final = """\
# Metrics

<!-- Generated from server/wfe_persistence/metrics.py by `./run gen`. -->

`/metrics` of the [admin port](running.md#admin-port) has them as Prometheus text, or as OpenMetrics
for clients that ask for it. With authentication, Prometheus needs a token whose principal has the
role `monitor` in all namespaces:

```yaml
scrape_configs:
  - job_name: wfe-persistence
    scheme: https
    authorization:
      credentials_file: /etc/prometheus/wfe-token
    tls_config:
      ca_file: /etc/prometheus/wfe-ca.pem
    static_configs:
      - targets: ["wfe.example:9464"]
```

The numbers are those of one server, with `--workers` of all its processes together; they start at 0
with it. Calls of `grpc.health.v1` and
of reflection are not counted as calls. No label has a value that a caller chooses, but for the
namespaces of the store's numbers: the default one and at most 19 others, those that were used last.
Each server counts them for itself once a minute, within 5 s, so take `max by (namespace, …)` over
servers. `./run bench --metrics` measures what counting costs a call.

| metric | type | labels | meaning |
|---|---|---|---|
"""

END: Final = """
Besides, there are `wfe_persistence_build_info` (labels `version` and `schema_version`) and what
every Python process with prometheus-client has: `process_cpu_seconds_total`,
`process_resident_memory_bytes`, `process_open_fds`, `python_gc_collections_total` and so on.
"""


def row(metric: Metric) -> str:
    """The line of one metric."""
    kind = type(metric).__name__.lower()
    labels = " ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {kind} | {labels} | {metric.help} |\n"


def page() -> str:
    """The whole page."""
    return INTRODUCTION + "".join(map(row, METRICS)) + END


FILES: Final = {PAGE: page}
