"""The log, on stderr: text for people, JSON for programs."""

from __future__ import annotations

import json
import logging
import sys

from wfe_persistence.redaction import redacted
from wfe_persistence.settings import Settings


class _TextFormatter(logging.Formatter):
    """Text without passwords, whatever came into an exception's message."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


class _JsonFormatter(logging.Formatter):
    """One JSON object per line, without passwords."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
        }
        entry |= getattr(record, "fields", None) or {}
        if record.exc_info:
            entry["exception"] = redacted(self.formatException(record.exc_info))
        return json.dumps(entry, ensure_ascii=False)


def log_to_stderr(settings: Settings) -> None:
    """Set up logging with the level and format of the settings."""
    handler = logging.StreamHandler()
    auto_json = settings.log_format == "auto" and not sys.stderr.isatty()
    if settings.log_format == "json" or auto_json:
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(_TextFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    # The pool logs every broken connection; what matters about it is reported as health.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_hang_up)


def _is_no_hang_up(record: logging.LogRecord) -> bool:
    """False for what gRPC logs, as an error with a traceback, when a client hangs up while it is
    being answered: nothing is wrong then, and nothing can be done."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "ExecuteBatchError"
