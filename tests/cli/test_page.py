"""docs/cli.md: what it shows is what the commands print.

`WFE_RENEW=1 ./run test tests/cli/test_page.py` writes it anew.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from tests.cli.conftest import Shop
from tests.hosts.pages import ROOT

PAGE = ROOT / "docs" / "cli.md"
_CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What differs from one run to the next, or from one release to the next.
_VARIES = (
    (re.compile(r"namespace n_\w+"), "namespace default"),
    (
        re.compile(r"server \S+, PostgreSQL \S+ schema version \d+"),
        "server 0.1.0, PostgreSQL 18.4, schema version 13",
    ),
)


def _printed(block: str, shop: Shop) -> str:
    lines = []
    for command in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
        program, *arguments = shlex.split(command)
        assert program == "wfe-persistence"
        output = shop.says(*arguments)
        for pattern, fixed in _VARIES:
            output = pattern.sub(fixed, output)
        lines.append(f"$ {command}\n{output}")
    return "".join(lines)


def test_what_the_page_shows_is_printed(shop: Shop) -> None:
    text = PAGE.read_text()
    blocks = _CONSOLE.findall(text)
    assert len(blocks) >= 5
    made = _CONSOLE.sub(lambda found: f"```console\n{_printed(found[1], shop)}```", text)
    if os.environ.get("WFE_RENEW"):
        _write(PAGE, made)
    assert made == PAGE.read_text()


def _write(path: Path, text: str) -> None:
    path.write_text(text)
