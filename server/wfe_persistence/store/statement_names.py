"""The names of statements: those of the constants that have their SQL."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from wfe_persistence.store.postgres.prepared import OTHER

_PACKAGE = __name__.rpartition(".")[0]

_names: dict[str, str] = {}
_modules = 0


def statement_name(sql: str) -> str:
    """The name of the constant in `store` with this SQL, as in tests/store/statements: `GET_EVENT`.

    Of a dictionary of statements it is that of the dictionary. SQL that is made at run time is
    `OTHER`.
    """
    global _modules
    name = _names.get(sql)
    if name is None and _modules != len(sys.modules):
        _modules = len(sys.modules)
        _names.update(_constants())
        name = _names.get(sql)
    return name or OTHER


def _constants() -> Iterator[tuple[str, str]]:
    modules = [m for n, m in list(sys.modules.items()) if n.startswith(f"{_PACKAGE}.")]
    for module in modules:
        for name, value in list(vars(module).items()):
            if name.isupper() and not name.startswith("_"):
                yield from ((sql, name) for sql in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for text in value.values() if isinstance(text, str))
