"""Write the pages and files that are generated from something else, or check that they follow.

python -m docs.generated write
python -m docs.generated check    exit with 1 if one is not that of what it is made from
"""

from __future__ import annotations

import sys
from typing import Final

from deploy.helm import schema
from deploy.monitoring import monitoring
from docs import configuration, errors, limits, metrics, protocol

MADE_BY: Final = (configuration, errors, limits, metrics, monitoring, protocol, schema)

FILES: Final = {path: text for module in MADE_BY for path, text in module.FILES.items()}


def main() -> None:
    """Write or check, as the argument says."""
    match sys.argv[1:]:
        case ["write"]:
            for path, text in FILES.items():
                path.parent.mkdir(exist_ok=True)
                path.write_text(text(), "utf-8")
        case ["check"]:
            old = [path.name for path, text in FILES.items()
                   if not path.exists() or path.read_text("utf-8") != text()]  # fmt: skip
            if old:
                sys.exit(f"not that of what it is made from: {', '.join(old)}: ./run gen")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
