"""The server with few file descriptors: `python -m tests.faults.few_descriptors_server serve`."""

from __future__ import annotations

import os
import resource

from wfe_persistence.cli import main

if __name__ == "__main__":
    limit = int(os.environ["DESCRIPTORS"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    main()
