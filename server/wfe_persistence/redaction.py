"""Passwords are taken out of all that is logged or printed.

Whoever reads a password hides it here; the log and the command line show only redacted text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PLACEHOLDER: Final = "***"

# Passwords are rotated: as many of the latest ones are remembered.
_MAX_HIDDEN: Final = 100

# A shorter one is only taken out where it is a word of its own: "a" is in every message.
_MIN_BYTES_WITHIN_WORDS: Final = 6

_CREDENTIALS_IN_URL: Final = re.compile(r"(?<=://)[^\s/@'\"]*:[^\s'\"]*@")
_PASSWORD_IN_CONNINFO: Final = re.compile(
    r"\b((?:ssl)?password|oauth_client_secret)(\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&'\"]+)",
    re.IGNORECASE,
)

_hidden: dict[str, re.Pattern[str]] = {}


def hide(secret: str) -> None:
    """Take this text out of everything from now on."""
    if not secret:
        return
    _hidden.pop(secret, None)
    pattern = re.escape(secret)
    if len(secret) < _MIN_BYTES_WITHIN_WORDS:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    _hidden[secret] = re.compile(pattern)
    if len(_hidden) > _MAX_HIDDEN:
        del _hidden[next(iter(_hidden))]


@contextmanager
def forgetting() -> Iterator[None]:
    """Forget in the end what is hidden inside, for tests: a password of one may be "a"."""
    before = dict(_hidden)
    try:
        yield
    finally:
        _hidden.clear()
        _hidden.update(before)


def redacted(text: str) -> str:
    """A text without what was hidden, and without what looks like a password."""
    for secret in sorted(_hidden, key=len, reverse=True):
        text = _hidden[secret].sub(_PLACEHOLDER, text)
    text = _CREDENTIALS_IN_URL.sub(f"{_PLACEHOLDER}@", text)
    return _PASSWORD_IN_CONNINFO.sub(rf"\1\2{_PLACEHOLDER}", text)
