"""How a test looks at a page of the console."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tests.support.admin import AdminServer
from tests.support.browser import Tab

AXE: Final = Path(__file__).with_name("axe") / "axe.min.js"
# WCAG 2.2 AA, and what axe counts as good practice besides.
_RULES: Final = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


def base(server: AdminServer) -> str:
    host, port = server.admin
    return f"{'https' if server.context else 'http'}://{host}:{port}/console/"


READY = "document.querySelector('main')?.dataset.ready === 'yes'"


def show(tab: Tab, server: AdminServer, page: str) -> None:
    """Open a page, and wait until it is complete."""
    tab.open(base(server) + page)
    tab.wait(f"location.href.endsWith({json.dumps(page)}) && {READY}")


def check_accessibility(tab: Tab) -> None:
    """axe finds nothing to complain about."""
    if not tab.run("'axe' in globalThis"):
        tab.run(AXE.read_text() + ";0")
    options = {"runOnly": _RULES, "resultTypes": ["violations"]}
    found: list[dict[str, Any]] = tab.run(
        f"axe.run(document, {json.dumps(options)}).then(r => r.violations.map(v => "
        "({rule: v.id, help: v.help, nodes: v.nodes.map(n => n.html + n.failureSummary)})))",
        timeout=60,
    )
    assert found == [], json.dumps(found, indent=1)
