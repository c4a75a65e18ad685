"""`wfe-persistence` whose metrics count nothing, to compare with."""

from wfe_persistence import metrics
from wfe_persistence.cli import main


def _nothing(*_: object) -> None:
    pass


for kind, name in (
    (metrics.Counter, "add"), (metrics.Gauge, "add"), (metrics.Histogram, "observe"),
):  # fmt: skip
    setattr(kind, name, _nothing)

if __name__ == "__main__":
    main()
