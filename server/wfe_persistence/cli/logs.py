"""The log, on stderr: text for people, JSON for programs."""

from __future__ import annotations

import json
import logging
import sys

from wfe_persistence.redaction import redacted
from wfe_persistence.settings import Settings
from wfe_persistence.time_spent import call_names


class TextFormatter(logging.Formatter):
    """Text without passwords, whatever came into an exception's message."""

    def format(self, record: logging.LogRecord) -> str:
        """A line, with the names of the call in which it was logged."""
        text = super().format(record)
        # (The lines about calls themselves have the names in their message.)
        if not getattr(record, "fields", None) and (names := call_names()):
            text += f" ({' '.join(f'{name}={value}' for name, value in names.items())})"
        return redacted(text)


class JsonFormatter(logging.Formatter):
    """One JSON object per line, without passwords. It names the worker, if there are several."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        """A line, with the fields that the record has, or the names of the call in which it was
        logged."""
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage()),
            **self._worker,
        }
        entry |= getattr(record, "fields", None) or call_names()
        if record.exc_info:
            entry["exception"] = redacted(self.formatException(record.exc_info))
        return json.dumps(entry, ensure_ascii=False)


def log_to_stderr(settings: Settings, worker: int | None = None) -> None:
    """Set up logging with the level and format of the settings. `worker`: which of several
    processes this is."""
    handler = logging.StreamHandler()
    auto_json = settings.log_format == "auto" and not sys.stderr.isatty()
    if settings.log_format == "json" or auto_json:
        handler.setFormatter(JsonFormatter(worker))
    else:
        of = "" if worker is None else f"worker {worker}: "
        handler.setFormatter(TextFormatter(f"%(asctime)s %(levelname)-7s {of}%(message)s"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler])
    # The pool logs every broken connection; what matters about it is reported as health.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    logging.getLogger("grpc._cython.cygrpc").addFilter(_is_no_hang_up)


def _is_no_hang_up(record: logging.LogRecord) -> bool:
    """False for what gRPC logs, as an error with a traceback, when a client hangs up while it is
    being answered: nothing is wrong then, and nothing can be done."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "ExecuteBatchError"
