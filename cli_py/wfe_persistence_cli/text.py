"""Text for a terminal: made harmless, measured and cut.

What a store contains comes from anybody: a name may hold escape sequences that move the cursor,
set the title or paste into the shell, characters that turn the direction of a line, or none that
can be seen. None of them is sent to a terminal; each is shown as the escape that it has in source
code, such as `\\x1b` and `\\u202e`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# Those join letters and emoji, and do nothing else.
_JOINERS: Final = "\u200c\u200d"
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_RIGHT_TO_LEFT: Final = frozenset({"R", "AL", "AN"})
_ISOLATE, _END_ISOLATE = "\u2068", "\u2069"
_NOT_ASCII: Final = re.compile("[^\x20-\x7e]")

ELLIPSIS: Final = "…"


def _is_harmless(character: str) -> bool:
    return character in _JOINERS or unicodedata.category(character) not in _HIDDEN


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    if _is_harmless(character):
        return character
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def harmless(text: str) -> str:
    """The text on one line, with an escape for each character that is not to be seen."""
    if text.isascii() and text.isprintable():
        return text
    return _NOT_ASCII.sub(_escape, text)


def _escape_json(found: re.Match[str]) -> str:
    character = found[0]
    if character == "\n" or _is_harmless(character):
        return character
    code = ord(character)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def harmless_json(document: str) -> str:
    """JSON that means the same, with an escape for each such character. (They are only in strings;
    line breaks between members stay.)"""
    return _NOT_ASCII.sub(_escape_json, document)


def _escape_yaml(found: re.Match[str]) -> str:
    character = found[0]
    # (YAML does not put surrogates together.)
    return _escape_json(found) if ord(character) < 0x10000 else _escape(found)


def harmless_yaml(quoted: str) -> str:
    """The same for a text in quotation marks in YAML."""
    return _NOT_ASCII.sub(_escape_yaml, quoted)


def isolated(text: str) -> str:
    """Text for a terminal that may reorder what is written from right to left: it keeps its own
    direction, and what stands beside it keeps its place."""
    if text.isascii() or not any(unicodedata.bidirectional(c) in _RIGHT_TO_LEFT for c in text):
        return text
    return f"{_ISOLATE}{text}{_END_ISOLATE}"


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def width_of(text: str) -> int:
    """How many cells of a terminal it takes."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def cut(text: str, width: int) -> str:
    """The text in at most so many cells; what is left out, an ellipsis stands for."""
    if width_of(text) <= width:
        return text
    taken, cells = [], 0
    for character in text:
        cells += _cells(character)
        if cells > width - 1:
            break
        taken.append(character)
    return "".join(taken) + ELLIPSIS if width > 0 else ""


def wrapped(text: str, width: int) -> list[str]:
    """The text on lines of at most so many cells, broken between words, or within one that is
    longer than a line."""
    lines: list[str] = []
    line, cells = "", 0
    for word in text.split():
        rest = f" {word}" if line else word
        if cells + width_of(rest) > width and line:
            lines.append(line)
            line, cells, rest = "", 0, word
        for character in rest:
            of_it = _cells(character)
            if cells + of_it > width and line:
                lines.append(line)
                line, cells = "", 0
            line += character
            cells += of_it
    return [*lines, line]


def counted(number: int, one: str, many: str = "") -> str:
    """`1 workflow`, `2,000 workflows`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
