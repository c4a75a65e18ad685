"""The versions of the server and of what it is made of."""

from __future__ import annotations

import sys
from importlib.metadata import version

from wfe_persistence.store.migration_files import latest_version


def versions() -> dict[str, str]:
    """All versions by name: the server, the schema that it migrates to, its dependencies."""
    return {
        "wfe-persistence": version("wfe-persistence"),
        "schema": str(latest_version()),
        "python": sys.version.split()[0],
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "psycopg": version("psycopg"),
    }
