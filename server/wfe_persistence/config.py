"""The settings of `serve`, checked once. Where they come from is the command line's affair."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from wfe_persistence.store.schema import DEFAULT_SCHEMA, Schema

DEFAULT_LISTEN = "127.0.0.1:50052"


def default_data_dir() -> Path:
    """Where the embedded PostgreSQL keeps its data unless told otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/wfe-persistence")
    home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(home) / "wfe-persistence"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a server needs to know. Raises ValueError for what can't work."""

    db_url: str
    listen: str = DEFAULT_LISTEN
    schema: str = DEFAULT_SCHEMA
    table_prefix: str = ""
    pool_size: int = 10
    pool_timeout: float = 5.0
    max_waiting: int = 2000
    prepare: bool = True
    max_prepared_mb: int = 100
    migrate: bool = True
    allow_truncate: bool = False
    allow_delete_namespace: bool = False
    allow_data_loss: bool = False
    reflection: bool = True
    max_message_bytes: int = 4 * 1024 * 1024
    default_deadline: float = 30.0
    drain_seconds: float = 5.0

    def __post_init__(self) -> None:
        Schema(self.schema, self.table_prefix)
        for name, least in (
            ("pool_size", 1),
            ("max_waiting", 1),
            ("max_prepared_mb", 1),
            ("max_message_bytes", 1024),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name.replace('_', '-')}: must be at least {least}")
        for name in ("pool_timeout", "default_deadline", "drain_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name.replace('_', '-')}: must be more than 0")
        if not self.listen.startswith("unix:"):
            host, _, port = self.listen.rpartition(":")
            if not host or not port.isdecimal() or int(port) > 65535:
                raise ValueError(f"listen: {self.listen!r} is neither HOST:PORT nor unix:PATH")
